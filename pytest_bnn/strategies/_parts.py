"""The classes from which networks are put together, as the code that appears in an example."""

from __future__ import annotations

from textwrap import dedent

PARTS = {
    "First": """
        class First(nn.Module):
            def forward(self, x):
                return x[0]
        """,
    "Attention": """
        class Attention(nn.Module):
            def __init__(self, features, heads):
                super().__init__()
                self.attention = nn.MultiheadAttention(features, heads, batch_first=True)

            def forward(self, x):
                return self.attention(x, x, x, need_weights=False)[0]
        """,
    "Residual": """
        class Residual(nn.Sequential):
            def forward(self, x):
                return x + super().forward(x)
        """,
    "Dense": """
        class Dense(nn.Sequential):
            def forward(self, x):
                return torch.cat([x, super().forward(x)], 1)
        """,
    "Sum": """
        class Sum(nn.Module):
            def __init__(self, *branches):
                super().__init__()
                self.branches = nn.ModuleList(branches)

            def forward(self, x):
                return sum(branch(x) for branch in self.branches)
        """,
    "Stack": """
        class Stack(nn.Module):
            def __init__(self, *layers):
                super().__init__()
                self.layers = nn.ModuleList(layers)

            def forward(self, x):
                for layer in self.layers:
                    x = layer(x)
                return x
        """,
    "Scaled": """
        class Scaled(nn.Module):
            def __init__(self, body):
                super().__init__()
                self.body = body
                self.scale = nn.Parameter(torch.tensor(0.5))

            def forward(self, x):
                return self.scale * self.body(x)
        """,
    "Slotted": """
        class Slotted(nn.Module):
            def __init__(self, body):
                super().__init__()
                self.body = body
                self.downsample = nn.Identity()
                self.downsample = None

            def forward(self, x):
                return self.body(x)
        """,
    "Referring": """
        class Referring(nn.Module):
            def __init__(self, body):
                super().__init__()
                self.body = body
                self.steps = [body]

            def forward(self, x):
                return self.steps[0](x)
        """,
    "LoRA": """
        class LoRA(nn.Linear):
            def __init__(self, in_features, out_features):
                super().__init__(in_features, out_features)
                self.down = nn.Linear(in_features, 1, bias=False)
                self.up = nn.Linear(1, out_features, bias=False)

            def forward(self, x):
                return super().forward(x) + self.up(self.down(x))
        """,
    "Doubled": """
        class Doubled(nn.{base}):
            def forward(self, x):
                return 2 * super().forward(x)
        """,
    "Named": """
        class {base}(nn.{base}):
            def forward(self, x):
                return -super().forward(x)
        """,
    "Namesake": """
        class {base}(nn.Module):
            def forward(self, x):
                return -x
        """,
    "Network": """
        class Network(nn.Sequential):
            input_shape = {shape}
        """,
    "double": """
        def double(module, arguments, output):
            return 2 * output
        """,
}


def definition(part: str, **names: object) -> str:
    """Give the code of one class."""
    return dedent(PARTS[part]).strip().format(**names)
