"""PDN, the pathway distillation network: one class-relevant code for the decision of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PathwayDistillationNetwork(nn.Module):
    """Joins what the deepest and the shallowest tap say into a code, taught by the classifier's own soft predictions.

    Images of one class get similar codes because one linear layer has to tell their classes from the code (arXiv
    2309.09887, section 3.2).

    Args:
        width: Size of the embeddings and of the code.
        classes: Number of classes, K.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.join = nn.Linear(2 * width, width)
        self.classify = nn.Linear(width, classes)

    def forward(self, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Make the code.

        Args:
            embeddings: As the recursive feature embedder makes them, one [B, width] per tap.

        Returns:
            The code [B, width], each value in (-1, 1), and the class logits told from it [B, K].
        """
        code = torch.tanh(self.join(torch.cat([embeddings[-1], embeddings[0]], 1)))
        return code, self.classify(code)
