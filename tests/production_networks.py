"""Small versions of the architectures that are in production, with random weights, for tests of what files hold."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from convolutional_networks import (
    CLASSES,
    Classifier,
    DenseNet,
    Inception,
    ResNet,
    ShuffleNet,
    Vgg,
    convolution,
    efficientnet,
    mobilenet_v3,
)
from small_networks import images, seeded

SIDE = 32


class LayerNormAcrossChannels(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that PyTorch gives it
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen, self.gelu, self.narrow = nn.Linear(channels, 16), nn.GELU(), nn.Linear(16, channels)
        self.layer_scale = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.gelu(self.widen(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        out: Tensor = x + self.layer_scale * y.permute(0, 3, 1, 2)
        return out


def convnext() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 6, 4, 4), LayerNormAcrossChannels(6, eps=1e-6))
    down = nn.Sequential(LayerNormAcrossChannels(6, eps=1e-6), nn.Conv2d(6, 8, 2, 2))
    head = (nn.AdaptiveAvgPool2d(1), LayerNormAcrossChannels(8), nn.Flatten(1), nn.Linear(8, CLASSES))
    return nn.Sequential(stem, ConvNeXtBlock(6), down, ConvNeXtBlock(8), *head)


class Attention(nn.Module):
    """Attention of several heads as most libraries write it: one projection, then PyTorch's fused function."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.projection = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.projection(attended.transpose(1, 2).reshape(batch, tokens, width))
        return out


class AttentionOfPyTorch(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return attended


class EncoderBlock(nn.Module):
    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    def __init__(self, attention: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.class_token, self.positions = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 17, 12))
        self.blocks = nn.Sequential(*(EncoderBlock(12, attention(12, 3)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


class FeaturePyramid(nn.Module):
    """Coarse maps are enlarged, bilinearly and by repetition, and added to finer ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = convolution(3, 6, stride=2, activation=nn.ReLU())
        self.stage2 = convolution(6, 8, stride=2, activation=nn.ReLU())
        self.stage3 = convolution(8, 8, stride=2, activation=nn.ReLU())
        self.lateral1, self.lateral2 = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 1)
        self.enlarge, self.fc = nn.Upsample(scale_factor=2, mode="nearest"), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stage1(x)
        middle = self.stage2(fine)
        coarse = self.enlarge(self.stage3(middle)) + self.lateral2(middle)
        sides = fine.shape[-2:]
        bilinear = functional.interpolate(coarse, size=sides, mode="bilinear", align_corners=False)
        aligned = functional.interpolate(coarse, size=sides, mode="bilinear", align_corners=True)
        merged = functional.relu(bilinear + aligned + self.lateral1(fine))
        logits: Tensor = self.fc(merged.mean((2, 3)))
        return logits


class Activations(nn.Module):
    """The less usual activation functions in a row."""

    def __init__(self) -> None:
        super().__init__()
        # Hardtanh is not among them: a file holds it as a Clip, as any other bounds on values.
        activations = [nn.ELU(), nn.SELU(), nn.CELU(0.7), nn.Mish(), nn.Softplus(), nn.Tanh(), nn.GELU("tanh")]
        activations += [nn.ReLU6(), nn.Sigmoid(), nn.Hardsigmoid()]
        self.stem, self.activations = nn.Conv2d(3, 6, 5, 3), nn.ModuleList(activations)
        self.convolutions = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in activations)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for activate, transform in zip(self.activations, self.convolutions, strict=True):
            x = x + transform(activate(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def with_group_norm() -> nn.Module:
    features = (nn.Conv2d(3, 8, 3, 2, bias=False), nn.GroupNorm(4, 8), nn.ReLU())
    return Classifier(6, *features, nn.Conv2d(8, 6, 3, padding="same"), nn.GroupNorm(1, 6), nn.ReLU())


def with_adaptive_pooling() -> nn.Module:
    features = (convolution(3, 6, activation=nn.ReLU()), nn.AdaptiveAvgPool2d((4, 8)), convolution(6, 6), nn.ReLU())
    return nn.Sequential(*features, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES))


def with_global_maximum() -> nn.Module:
    features = (convolution(3, 6, stride=2, activation=nn.ReLU()), nn.ReflectionPad2d(1), nn.Conv2d(6, 7, 3))
    return nn.Sequential(*features, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(7, CLASSES))


def with_activation(make: Callable[[int], nn.Module]) -> nn.Module:
    return Classifier(7, convolution(3, 6, 3, 2), make(6), nn.Conv2d(6, 7, 3, dilation=2), make(7))


def ending_in(last: nn.Module) -> nn.Module:
    return nn.Sequential(Classifier(6, convolution(3, 6, 3, 2, activation=nn.ReLU())), last)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG": Vgg,
    "ResNet": ResNet,
    "DenseNet": DenseNet,
    "Inception": Inception,
    "MobileNetV3": mobilenet_v3,
    "EfficientNet": efficientnet,
    "ShuffleNet": ShuffleNet,
    "ConvNeXt": convnext,
    "ViT": lambda: VisionTransformer(Attention),
    "ViT by nn.MultiheadAttention": lambda: VisionTransformer(AttentionOfPyTorch),
    "RegNet": lambda: ResNet(groups=2),
    "feature pyramid": FeaturePyramid,
    "many activations": Activations,
    "group norm": with_group_norm,
    "adaptive pooling": with_adaptive_pooling,
    "global maximum": with_global_maximum,
    "PReLU": lambda: with_activation(nn.PReLU),
    "LeakyReLU": lambda: with_activation(lambda _: nn.LeakyReLU(0.1, inplace=True)),
    "softmax": lambda: ending_in(nn.Softmax(1)),
    "log-softmax": lambda: ending_in(nn.LogSoftmax(1)),
}


def coloured_images(count: int, seed: int = 0) -> Tensor:
    """Noise on a colour of each image's own, so that images differ even in the means of their feature maps."""
    return images(count, seed, SIDE) + images(count, seed + 1, 1)


def production_network(name: str) -> nn.Module:
    """One of NETWORKS in evaluation mode, with the same weights and batch statistics in every run."""
    return seeded(lambda: _as_if_trained(NETWORKS[name]()))


def _as_if_trained(network: nn.Module) -> nn.Module:
    """Draw what PyTorch sets to 0 and 1, and make the logits of `coloured_images` vary by about 1.

    A mistake in any scale, shift or statistic then shows in the logits.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.05, 0.5)
        if isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_bias, std=0.3)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    logits = list[Tensor]()
    with torch.no_grad(), last.register_forward_hook(lambda _, __, output: logits.append(output)):
        network.eval()(coloured_images(16, seed=99))
        last.weight /= logits[0].std(0)[:, None]
        last.bias.copy_((last.bias - logits[0].mean(0)) / logits[0].std(0))
    return network
