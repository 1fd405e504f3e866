"""Small versions of the convolutional architectures that are in production, for `production_networks`."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 5


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation: nn.Module | None = None
) -> nn.Sequential:
    """Convolution, batch norm and, where given, an activation."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation] if activation else []))


class Classifier(nn.Sequential):
    """Feature maps, their mean, a linear layer."""

    def __init__(self, channels: int, *features: nn.Module) -> None:
        super().__init__(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)),
            *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(
            *(nn.Linear(8 * 4 * 4, 20), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            *(nn.Linear(20, 12), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(12, CLASSES)),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


class Bottleneck(nn.Module):
    """ResNet's; with `groups`, RegNet's and ResNeXt's."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = convolution(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


class ResNet(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Bottleneck(8, 4, 16, groups=groups), Bottleneck(16, 4, 16, groups=groups))
        self.layer2 = nn.Sequential(Bottleneck(16, 8, 32, 2, groups))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(inputs), nn.ReLU(True), nn.Conv2d(inputs, 8, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(8), nn.ReLU(True)
        self.conv2 = nn.Conv2d(8, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))
        return torch.cat([x, new], 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 7, 2, 3, bias=False), DenseLayer(6, 4), DenseLayer(10, 4)),
            *(nn.BatchNorm2d(14), nn.ReLU(inplace=True), nn.Conv2d(14, 7, 1, bias=False), nn.AvgPool2d(2, 2)),
            *(DenseLayer(7, 4), nn.BatchNorm2d(11)),
        )
        self.classifier = nn.Linear(11, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = functional.relu(self.features(x), inplace=True)
        logits: Tensor = self.classifier(torch.flatten(functional.adaptive_avg_pool2d(maps, (1, 1)), 1))
        return logits


class InceptionBlock(nn.Module):
    def __init__(self, inputs: int, count_include_pad: bool) -> None:
        super().__init__()
        self.branch1x1 = convolution(inputs, 4, 1)
        self.branch3x3 = nn.Sequential(convolution(inputs, 3, 1), convolution(3, 4))
        # Factorised into a row and a column.
        self.branch7x7 = nn.Sequential(
            nn.Conv2d(inputs, 3, (1, 7), padding=(0, 3)), nn.Conv2d(3, 4, (7, 1), padding=(3, 0))
        )
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=count_include_pad)
        self.branch_pool = convolution(inputs, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.branch1x1(x), self.branch3x3(x), self.branch7x7(x), self.branch_pool(self.pool(x))]
        return torch.cat([functional.relu(branch, inplace=True) for branch in branches], 1)


class Inception(nn.Module):
    """Average pooling that counts the padding and that does not, and windows that reach beyond the edge."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 6, 3, 2, activation=nn.ReLU(inplace=True))
        self.mixed1, self.mixed2 = InceptionBlock(6, True), InceptionBlock(14, False)
        self.fc = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed1(functional.max_pool2d(self.stem(x), 2, 3, ceil_mode=True))
        x = functional.avg_pool2d(self.mixed2(x), 3, 2, ceil_mode=True, count_include_pad=False)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.avgpool, self.activation, self.scale_activation = nn.AdaptiveAvgPool2d(1), activation, gate
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return gate * x


class InvertedResidual(nn.Module):
    """MobileNetV3's and EfficientNet's block."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module], squeeze: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(
            convolution(channels, 2 * channels, 1, activation=activation()),
            convolution(2 * channels, 2 * channels, 5, groups=2 * channels, activation=activation()),
            SqueezeExcitation(2 * channels, squeeze, gate),
            convolution(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x) + x
        return out


def mobilenet_v3() -> nn.Module:
    hardswish = partial(nn.Hardswish, inplace=True)
    blocks = [
        InvertedResidual(8, hardswish, nn.ReLU(), nn.Hardsigmoid()),
        InvertedResidual(8, nn.ReLU, nn.ReLU(), nn.Hardsigmoid()),
    ]
    return Classifier(8, convolution(3, 8, stride=2, activation=hardswish()), *blocks)


def efficientnet() -> nn.Module:
    silu = partial(nn.SiLU, inplace=True)
    blocks = [InvertedResidual(8, silu, silu(), nn.Sigmoid()), InvertedResidual(8, silu, silu(), nn.Sigmoid())]
    return Classifier(8, convolution(3, 8, stride=2, activation=silu()), *blocks)


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            convolution(half, half, 1, activation=nn.ReLU(inplace=True)),
            convolution(half, half, groups=half),
            convolution(half, half, 1, activation=nn.ReLU(inplace=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        joined = torch.cat([left, self.branch(right)], 1)
        batch, channels, height, width = joined.size()
        shuffled = joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return shuffled.view(batch, channels, height, width)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = convolution(3, 8, stride=2, activation=nn.ReLU(inplace=True))
        self.stage2, self.fc = nn.Sequential(ShuffleUnit(8), ShuffleUnit(8)), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.stage2(self.conv1(x)).mean([2, 3]))
        return logits
