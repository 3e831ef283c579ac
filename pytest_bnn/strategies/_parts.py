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
    "SmallResNet": """
        class SmallResNet(resnet.ResNet):
            input_shape = {shape}

            def __init__(self, block, depths, channels, num_classes):
                nn.Module.__init__(self)
                self._norm_layer, self.groups, self.base_width, self.dilation = nn.BatchNorm2d, 1, 64, 1
                self.inplanes = channels
                self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
                self.bn1 = nn.BatchNorm2d(channels)
                self.relu = nn.ReLU(inplace=True)
                self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
                for stage, depth in enumerate([*depths, 0, 0, 0][:4]):
                    stride = 2 if stage else 1
                    layer = self._make_layer(block, channels * 2**stage, depth, stride) if depth else nn.Identity()
                    setattr(self, f"layer{{stage + 1}}", layer)
                self.avgpool = nn.AdaptiveAvgPool2d(1)
                self.fc = nn.Linear(self.inplanes, num_classes)
                for module in self.modules():
                    if isinstance(module, nn.Conv2d):
                        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        """,
    "trained": """
        @torch.no_grad()
        def trained(network):
            norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
            for module in network.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.weight *= torch.empty_like(module.weight).log_normal_(-0.25, 0.5)
            for norm in norms:
                norm.weight.log_normal_(-0.3, 0.4)
                norm.bias.normal_(-0.1, 0.2)
                norm.momentum = 0.9
            network.train()(torch.randn(16, *network.input_shape).to(network.fc.weight))
            for norm in norms:
                norm.momentum = 0.1
            return network.eval()
        """,
    "double": """
        def double(module, arguments, output):
            return 2 * output
        """,
}


def definition(part: str, **names: object) -> str:
    """Return the code of one class."""
    return dedent(PARTS[part]).strip().format(**names)
