"""Small classifiers, one for each construct that a capture must get right, and their captures."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier

SIDE = 8
CLASSES = 4

Activation = Callable[[Tensor], Tensor]


def images(count: int, seed: int = 0, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Plain(nn.Module):
    """Convolution, activation, convolution, the same activation again, mean, linear layer."""

    def __init__(self, activation: Activation | None = None, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(6, 5, 3, padding=1, stride=2, bias=bias)
        self.linear = nn.Linear(5, CLASSES, bias=bias)
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.conv1(x))
        x = self.activation(self.conv2(x))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class ReadsInputOfInPlaceActivation(nn.Module):
    """The residual reads a tensor that the activation before it has overwritten, as PyTorch really computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.linear = nn.Linear(5, CLASSES)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv1(x)
        after = self.conv2(self.activation(before))
        logits: Tensor = self.linear(self.activation(after + before).mean((2, 3)))
        return logits


class Residual(nn.Module):
    """Two residual blocks with batch norm and one re-used in-place activation each, as in torchvision's ResNets."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
            self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.bn1(self.conv1(x)))
            out: Tensor = self.relu(self.bn2(self.conv2(y)) + x)
            return out

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layer1 = nn.Sequential(self.Block(6), self.Block(6))
        self.linear = nn.Linear(6, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.layer1(self.stem(x)).mean((2, 3)))
        return logits


class Concatenating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([functional.relu(self.left(x)), functional.relu(self.right(x))], 1)
        logits: Tensor = self.linear(functional.max_pool2d(joined, 2, ceil_mode=True).mean((2, 3)))
        return logits


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 6, 1), nn.ReLU6(inplace=True), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU6()),
            *(nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


class ChannelsLast(nn.Module):
    """The block of ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.norm, self.widen, self.narrow = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.full((6,), 0.5))
        self.linear = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.narrow(functional.gelu(self.widen(self.norm(x.permute(0, 2, 3, 1)))))
        logits: Tensor = self.linear((x + (self.scale * y).permute(0, 3, 1, 2)).mean((2, 3)))
        return logits


class NormalisedAcrossChannels(nn.Module):
    """A layer norm that is permuted to the channels and back, then activated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 6, 3), nn.LayerNorm(6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        logits: Tensor = self.linear(functional.gelu(normalised).mean((2, 3)))
        return logits


class Gated(nn.Module):
    """Squeeze and excitation; `spread` gives the gate the shape of the feature map."""

    def __init__(self, spread: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 6, 3), nn.Linear(6, 3), nn.Linear(3, 6)
        self.linear, self.spread = nn.Linear(6, CLASSES), spread

    def forward(self, x: Tensor) -> Tensor:
        maps = functional.relu(self.conv(x))
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(maps.mean((2, 3))))))
        logits: Tensor = self.linear((maps * self.spread(gate, maps)).mean((2, 3)))
        return logits


class Transformer(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=batch_first)
        self.linear, self.batch_first = nn.Linear(8, CLASSES), batch_first

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.block(tokens) if self.batch_first else self.block(tokens.transpose(0, 1)).transpose(0, 1)
        logits: Tensor = self.linear(tokens.mean(1))
        return logits


class Dense(nn.Module):
    """A multilayer perceptron: taps without height and width."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(
                nn.Flatten(),
                nn.Linear(3 * SIDE * SIDE, 10, bias=bias),
                nn.ReLU(),
                nn.Linear(10, 7, bias=bias),
                nn.ReLU(),
            ),
            nn.Linear(7, CLASSES, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


class Decisive(nn.Module):
    """Each class has hidden neurons of its own, so that noise is spread over all classes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.linear = nn.Linear(3 * SIDE * SIDE, 4 * CLASSES), nn.Linear(4 * CLASSES, CLASSES, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(3 * torch.eye(CLASSES).repeat_interleave(4, 1) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(functional.relu(self.hidden(x.flatten(1))))
        return logits


GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "indexed": lambda gate, _: gate[:, :, None, None],
    "unsqueezed": lambda gate, _: gate.unsqueeze(-1).unsqueeze(-1),
    "viewed and expanded": lambda gate, maps: gate.view(-1, 6, 1, 1).expand_as(maps),
}

ACTIVATIONS: dict[str, tuple[str, Callable[[], Activation]]] = {
    "functional relu": ("relu", lambda: functional.relu),
    "torch.relu": ("relu", lambda: torch.relu),
    "relu_": ("relu", lambda: torch.relu_),
    "in-place functional relu": ("relu", lambda: lambda x: functional.relu(x, inplace=True)),
    "in-place module ReLU": ("relu", lambda: nn.ReLU(inplace=True)),
    "ReLU6": ("relu6", nn.ReLU6),
    "in-place ReLU6": ("relu6", lambda: nn.ReLU6(inplace=True)),
    "Hardtanh": ("hardtanh", nn.Hardtanh),
    "in-place LeakyReLU": ("leaky_relu", lambda: nn.LeakyReLU(0.1, inplace=True)),
    "PReLU": ("prelu", nn.PReLU),
    "RReLU": ("rrelu", nn.RReLU),
    "GELU": ("gelu", nn.GELU),
    "GELU by tanh": ("gelu", lambda: nn.GELU("tanh")),
    "in-place SiLU": ("silu", lambda: nn.SiLU(inplace=True)),
    "in-place Hardswish": ("hardswish", lambda: nn.Hardswish(inplace=True)),
    "ELU": ("elu", nn.ELU),
    "CELU": ("celu", nn.CELU),
    "SELU": ("selu", nn.SELU),
    "Mish": ("mish", nn.Mish),
    "tanh": ("tanh", lambda: torch.tanh),
    "softplus": ("softplus", lambda: functional.softplus),
    "sigmoid": ("sigmoid", lambda: torch.sigmoid),
    "hardsigmoid": ("hardsigmoid", lambda: functional.hardsigmoid),
}

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "dense": Dense,
    "decisive": Decisive,
    "residual": Residual,
    "reads the input of an in-place activation": ReadsInputOfInPlaceActivation,
    "concatenating": Concatenating,
    "depthwise": Depthwise,
    "channels last": ChannelsLast,
    "normalised across channels": NormalisedAcrossChannels,
    "gated": lambda: Gated(GATES["indexed"]),
    "transformer": Transformer,
}


@cache
def original(name: str) -> nn.Module:
    """One of NETWORKS in evaluation mode, with the same weights in every test."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return NETWORKS[name]().eval()


@cache
def captured(name: str) -> CapturedClassifier:
    """The capture of `original(name)`. Captures keep no state, so all tests share one."""
    return capture(original(name), images(2, seed=99))


def seeded(make: Callable[[], nn.Module], seed: int = 11) -> nn.Module:
    """A network whose weights are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def clear_images(count: int, seed: int = 0) -> Tensor:
    """Images that the network "decisive" is sure of: what drives the neurons of each class in turn, and some noise."""
    drives = original("decisive").get_parameter("hidden.weight").detach().view(CLASSES, 4, -1).sum(1)
    drives = 5 * drives / drives.norm(dim=1, keepdim=True)
    chosen: Tensor = drives[torch.arange(count) % CLASSES]
    return chosen.view(count, 3, SIDE, SIDE) + images(count, seed)
