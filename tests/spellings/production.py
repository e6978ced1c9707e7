"""Feed-forwards as production code has them: module trees, fused projections, experts, casts and flags."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum as einops_einsum
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange
from torch import nn

from tests.spellings.case import Case, case


def weight(*shape, fan):
    """A raw parameter for a sum of ``fan`` products."""
    return nn.Parameter(torch.randn(shape) * fan**-0.5)


def initialised(model):
    """As ``_init_weights`` does it, but with scores of order one."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm, LlamaRMSNorm)) and module.weight is not None:
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
    return model


def upcast(x):
    """``x.float()``, which leaves a double alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass
class Config:
    hidden_size: int = 15
    intermediate_size: int = 12
    num_heads: int = 3
    num_key_value_heads: int = 3
    num_experts: int = 2
    hidden_act: str = "silu"
    mlp_bias: bool = False
    dropout: float = 0.0

    @property
    def head_dim(self):
        return self.hidden_size // self.num_heads


class NewGELUActivation(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class GELUActivation(nn.Module):
    """The original of Google BERT."""

    def forward(self, x):
        return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class ReLUSquaredActivation(nn.Module):
    def forward(self, x):
        return torch.square(F.relu(x))


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


ACT2FN = {
    "gelu": nn.GELU(),
    "gelu_new": NewGELUActivation(),
    "gelu_python": GELUActivation(),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "linear": nn.Identity(),
    "relu": nn.ReLU(),
    "relu2": ReLUSquaredActivation(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "swish": Swish(),
}


class LlamaRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = upcast(hidden_states)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class LlamaMLP(nn.Module):
    def __init__(self, hidden_size, intermediate_size, hidden_act="silu", bias=False, out_size=None):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, out_size or hidden_size, bias=bias)
        self.act_fn = ACT2FN[hidden_act]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


# Dense, gated.


@case
def llama_block():
    "Hugging Face, Llama: three Linears behind a norm, residual"

    class DecoderLayer(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size)
            self.mlp = LlamaMLP(config.hidden_size, config.intermediate_size, config.hidden_act)

        def forward(self, hidden_states):
            residual = hidden_states
            hidden_states = self.post_attention_layernorm(hidden_states)
            hidden_states = self.mlp(hidden_states)
            return residual + hidden_states

    return initialised(DecoderLayer(Config(hidden_size=10, intermediate_size=14))), (torch.randn(2, 7, 10),)


@case
def llama_pretraining_tp():
    "Hugging Face, the first Llama: weights in slices, as the training had them"

    class TPMLP(nn.Module):
        def __init__(self, hidden_size, intermediate_size, pretraining_tp):
            super().__init__()
            self.pretraining_tp = pretraining_tp
            self.intermediate_size = intermediate_size
            self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
            self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
            self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

        def forward(self, x):
            tp = self.pretraining_tp
            if tp <= 1:
                return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
            width = self.intermediate_size // tp
            gate_slices = self.gate_proj.weight.split(width, dim=0)
            up_slices = self.up_proj.weight.split(width, dim=0)
            down_slices = self.down_proj.weight.split(width, dim=1)
            gate_proj = torch.cat([F.linear(x, gate_slices[i]) for i in range(tp)], dim=-1)
            up_proj = torch.cat([F.linear(x, up_slices[i]) for i in range(tp)], dim=-1)
            intermediate_states = (F.silu(gate_proj) * up_proj).split(width, dim=2)
            return sum(F.linear(intermediate_states[i], down_slices[i]) for i in range(tp))

    return initialised(TPMLP(8, 18, 3)), (torch.randn(2, 5, 8),)


@case
def phi3_fused():
    "Hugging Face, Phi-3 and GLM: gate and up in one Linear, chunk, up first in the product"

    class Phi3MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Linear(9, 2 * 13, bias=False)
            self.down_proj = nn.Linear(13, 9, bias=False)
            self.activation_fn = ACT2FN["silu"]

        def forward(self, hidden_states):
            up_states = self.gate_up_proj(hidden_states)
            gate, up_states = up_states.chunk(2, dim=-1)
            up_states = up_states * self.activation_fn(gate)
            return self.down_proj(up_states)

    return initialised(Phi3MLP()), (torch.randn(2, 6, 9, requires_grad=True),)


@case
def olmo_gate_second():
    "OLMo: the activation halves the width, and the gate comes second"

    class SwiGLU(nn.Module):
        @property
        def output_multiplier(self):
            return 0.5

        def forward(self, x):
            x, gate = x.chunk(2, dim=-1)
            return F.silu(gate) * x

    class OLMoBlock(nn.Module):
        def __init__(self, d_model, hidden):
            super().__init__()
            self.ff_norm = nn.LayerNorm(d_model, elementwise_affine=False)
            self.act = SwiGLU()
            self.dropout = nn.Dropout(0.0)
            self.ff_proj = nn.Linear(d_model, hidden, bias=True)
            self.ff_out = nn.Linear(int(self.act.output_multiplier * hidden), d_model, bias=True)

        def forward(self, x):
            og_x = x
            x = self.ff_out(self.act(self.ff_proj(self.ff_norm(x))))
            return og_x + self.dropout(x)

    return initialised(OLMoBlock(8, 22)), (torch.randn(2, 5, 8),)


@case
def vllm_silu_and_mul():
    "vLLM: MergedColumnParallelLinear and SiluAndMul on flat tokens"

    class SiluAndMul(nn.Module):
        def forward(self, x):
            d = x.shape[-1] // 2
            return F.silu(x[..., :d]) * x[..., d:]

    class MergedMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = weight(2 * 11, 10, fan=10)
            self.down_proj = weight(10, 11, fan=11)
            self.act_fn = SiluAndMul()

        def forward(self, x):
            gate_up = F.linear(x, self.gate_up_proj)
            return F.linear(self.act_fn(gate_up), self.down_proj)

    return MergedMLP(), (torch.randn(9, 10),)


@case
def megatron_bias_swiglu():
    "Megatron-LM: [s, b, h], bias skipped by the Linear, added in the activation, output bias returned apart"

    def bias_swiglu(y, bias):
        y = y + bias
        y_1, y_2 = torch.chunk(y, 2, -1)
        return F.silu(y_1) * y_2

    class ParallelMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear_fc1 = nn.Linear(8, 2 * 13)
            self.linear_fc2 = nn.Linear(13, 8)

        def forward(self, hidden_states):
            intermediate_parallel = torch.matmul(hidden_states, self.linear_fc1.weight.t())
            intermediate_parallel = bias_swiglu(intermediate_parallel, self.linear_fc1.bias)
            output = torch.matmul(intermediate_parallel, self.linear_fc2.weight.t())
            return output, self.linear_fc2.bias

    class TransformerLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.pre_mlp_layernorm = nn.LayerNorm(8)
            self.mlp = ParallelMLP()

        def forward(self, x):
            mlp_output, mlp_bias = self.mlp(self.pre_mlp_layernorm(x))
            out = F.dropout(mlp_output + mlp_bias.expand_as(x), p=0.1, training=self.training)
            return x + out

    return initialised(TransformerLayer().eval()), (torch.randn(7, 2, 8),)


@case
def falcon_h1_multipliers():
    "Falcon-H1: a multiplier on the gate, and one on the output"

    class FalconH1MLP(nn.Module):
        def __init__(self, mlp_multipliers):
            super().__init__()
            self.gate_proj = nn.Linear(10, 12, bias=False)
            self.up_proj = nn.Linear(10, 12, bias=False)
            self.down_proj = nn.Linear(12, 10, bias=False)
            self.act_fn = nn.SiLU()
            self.gate_multiplier, self.down_multiplier = mlp_multipliers

        def forward(self, x):
            y = self.up_proj(x) * self.act_fn(self.gate_proj(x) * self.gate_multiplier)
            y = self.down_proj(y) * self.down_multiplier
            return y

    return initialised(FalconH1MLP([0.883, 0.59])), (torch.randn(2, 5, 10),)


@case
def mup_multipliers_everywhere():
    "muP: the width divides the gate, the up score and the output, with biases on gate and up"

    class MuReadout(nn.Linear):
        def __init__(self, *args, multiplier, **kwargs):
            super().__init__(*args, **kwargs)
            self.multiplier = multiplier

        def forward(self, x):
            return super().forward(x) / self.multiplier

    class MuMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1 = MuReadout(6, 10, multiplier=1.5)
            self.w3 = MuReadout(6, 10, multiplier=0.8)
            self.w2 = MuReadout(10, 7, bias=False, multiplier=math.sqrt(2))

        def forward(self, x):
            return self.w2(F.gelu(self.w1(x)) * self.w3(x))

    return initialised(MuMLP()), (torch.randn(2, 9, 6),)


@case
def torchtitan_feed_forward():
    "torchtitan: w2(silu(w1 x) * w3 x), width rounded to a multiple, depth-scaled residual"

    class FeedForward(nn.Module):
        def __init__(self, dim, hidden_dim, multiple_of, ffn_dim_multiplier=None):
            super().__init__()
            hidden_dim = int(2 * hidden_dim / 3)
            if ffn_dim_multiplier is not None:
                hidden_dim = int(ffn_dim_multiplier * hidden_dim)
            hidden_dim = multiple_of * ((hidden_dim + multiple_of - 1) // multiple_of)
            self.w1 = nn.Linear(dim, hidden_dim, bias=False)
            self.w2 = nn.Linear(hidden_dim, dim, bias=False)
            self.w3 = nn.Linear(dim, hidden_dim, bias=False)

        def forward(self, x):
            return self.w2(F.silu(self.w1(x)) * self.w3(x))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.feed_forward = FeedForward(10, 20, 7)
            self.ffn_norm = nn.RMSNorm(10, eps=1e-5)
            self.n_layers = 6

        def forward(self, x):
            return x + self.feed_forward(self.ffn_norm(x)) / (2 * self.n_layers) ** 0.5

    return initialised(Block()), (torch.randn(2, 6, 10),)


@case
def gemma_sqrt_scale():
    "Gemma: GELU by tanh, the input scaled by a normalizer in its dtype, RMSNorm with 1 + weight"

    class GemmaRMSNorm(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(dim) * 0.1)

        def forward(self, x):
            h = upcast(x)
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
            return (h * (1.0 + upcast(self.weight))).type_as(x)

    class Gemma(nn.Module):
        def __init__(self):
            super().__init__()
            self.pre = GemmaRMSNorm(9)
            self.post = GemmaRMSNorm(9)
            self.mlp = LlamaMLP(9, 14, "gelu_pytorch_tanh")

        def forward(self, x):
            normalizer = torch.tensor(9**0.5, dtype=x.dtype, device=x.device)
            x = x * normalizer
            return x + self.post(self.mlp(self.pre(x)))

    return initialised(Gemma()), (torch.randn(2, 5, 9),)


@case
def t5_gated_gelu():
    "Hugging Face, T5 v1.1: wi_0, wi_1 and wo, gelu_new, dropout, a dtype check on wo"

    class T5DenseGatedActDense(nn.Module):
        def __init__(self, d_model, d_ff):
            super().__init__()
            self.wi_0 = nn.Linear(d_model, d_ff, bias=False)
            self.wi_1 = nn.Linear(d_model, d_ff, bias=False)
            self.wo = nn.Linear(d_ff, d_model, bias=False)
            self.dropout = nn.Dropout(0.1)
            self.act = ACT2FN["gelu_new"]

        def forward(self, hidden_states):
            hidden_gelu = self.act(self.wi_0(hidden_states))
            hidden_linear = self.wi_1(hidden_states)
            hidden_states = hidden_gelu * hidden_linear
            hidden_states = self.dropout(hidden_states)
            if isinstance(self.wo.weight, torch.Tensor) and hidden_states.dtype != self.wo.weight.dtype:
                hidden_states = hidden_states.to(self.wo.weight.dtype)
            return self.wo(hidden_states)

    class T5LayerFF(nn.Module):
        def __init__(self):
            super().__init__()
            self.DenseReluDense = T5DenseGatedActDense(8, 15)
            self.layer_norm = LlamaRMSNorm(8)
            self.dropout = nn.Dropout(0.1)

        def forward(self, hidden_states):
            forwarded_states = self.DenseReluDense(self.layer_norm(hidden_states))
            return hidden_states + self.dropout(forwarded_states)

    return initialised(T5LayerFF().eval()), (torch.randn(2, 6, 8),)


@case
def modernbert_glu():
    "ModernBERT: Wi and Wo with biases, the input is activated and the gate is not, Identity as norm"

    class ModernBertMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.Wi = nn.Linear(10, 2 * 9)
            self.act = ACT2FN["gelu"]
            self.drop = nn.Dropout(0.0)
            self.Wo = nn.Linear(9, 10)

        def forward(self, hidden_states):
            input, gate = self.Wi(hidden_states).chunk(2, dim=-1)
            return self.Wo(self.drop(self.act(input) * gate))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp_norm = nn.Identity()
            self.mlp = ModernBertMLP()

        def forward(self, x):
            return x + self.mlp(self.mlp_norm(x))

    return initialised(Layer()), (torch.randn(13, 10),)


@case
def xformers_packed():
    "xformers: w12 packed, viewed as [2, F, D] and unbound, SwiGLU with all biases"

    class SwiGLU(nn.Module):
        def __init__(self, in_features, hidden_features, out_features):
            super().__init__()
            self.w12 = nn.Linear(in_features, 2 * hidden_features)
            self.w3 = nn.Linear(hidden_features, out_features)
            self.hidden_features = hidden_features

        def forward(self, x):
            w1w2 = self.w12.weight.view(2, self.hidden_features, -1)
            b1b2 = self.w12.bias.view(2, self.hidden_features)
            batch_shape = x.shape[:-1]
            x = x.flatten(end_dim=-2)
            w1, w2 = w1w2.unbind(dim=0)
            b1, b2 = b1b2.unbind(dim=0)
            x1 = F.linear(x, w1, b1)
            x2 = F.linear(x, w2, b2)
            return F.linear(F.silu(x1) * x2, self.w3.weight, self.w3.bias).view(*batch_shape, -1)

    return initialised(SwiGLU(7, 12, 10)), (torch.randn(2, 5, 7),)


@case
def timm_eva_swiglu():
    "timm, EVA-02: fc1_g and fc1_x, in place activation, sub-norm left out, pre-norm block with layer scale"

    class SwiGLU(nn.Module):
        def __init__(self, in_features, hidden_features, norm_layer=None, drop=0.0):
            super().__init__()
            self.fc1_g = nn.Linear(in_features, hidden_features)
            self.fc1_x = nn.Linear(in_features, hidden_features)
            self.act = nn.SiLU(inplace=True)
            self.drop1 = nn.Dropout(drop)
            self.norm = norm_layer(hidden_features) if norm_layer is not None else nn.Identity()
            self.fc2 = nn.Linear(hidden_features, in_features)
            self.drop2 = nn.Dropout(drop)

        def forward(self, x):
            x_gate = self.fc1_g(x)
            x = self.fc1_x(x)
            x = self.act(x_gate) * x
            x = self.drop1(x)
            x = self.norm(x)
            x = self.fc2(x)
            return self.drop2(x)

    class EvaBlock(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = SwiGLU(dim, 11)
            self.gamma_2 = nn.Parameter(0.5 * torch.rand(dim) + 0.1)

        def forward(self, x):
            return x + self.gamma_2 * self.mlp(self.norm2(x))

    return initialised(EvaBlock(8)), (torch.randn(2, 6, 8),)


@case
def timm_glu_mlp():
    "timm, GluMlp: sigmoid, gate last or first by a flag"

    class GluMlp(nn.Module):
        def __init__(self, in_features, hidden_features, act_layer=nn.Sigmoid, gate_last=True):
            super().__init__()
            self.chunk_dim = -1
            self.gate_last = gate_last
            self.fc1 = nn.Linear(in_features, hidden_features)
            self.act = act_layer()
            self.norm = nn.Identity()
            self.fc2 = nn.Linear(hidden_features // 2, in_features)

        def forward(self, x):
            x = self.fc1(x)
            x1, x2 = x.chunk(2, dim=self.chunk_dim)
            x = x1 * self.act(x2) if self.gate_last else self.act(x1) * x2
            x = self.norm(x)
            return self.fc2(x)

    return initialised(GluMlp(9, 20)), (torch.randn(2, 5, 9),)


@case
def sequential_glu():
    "a Sequential of Linear, nn.GLU and Linear, as in speech encoders"
    model = nn.Sequential(
        nn.LayerNorm(8), nn.Linear(8, 26), nn.GLU(dim=-1), nn.Dropout(0.0), nn.Linear(13, 8, bias=False)
    )
    return initialised(model), (torch.randn(2, 7, 8),)


@case
def conv1d_pointwise_glu():
    "Conformer: pointwise convolutions over [B, C, T], the halves along the channels"

    class PointwiseGLU(nn.Module):
        def __init__(self, channels, hidden):
            super().__init__()
            self.layer_norm = nn.LayerNorm(channels)
            self.pointwise_conv1 = nn.Conv1d(channels, 2 * hidden, kernel_size=1, bias=False)
            self.pointwise_conv2 = nn.Conv1d(hidden, channels, kernel_size=1, bias=False)

        def forward(self, hidden_states):
            hidden_states = self.layer_norm(hidden_states)
            hidden_states = hidden_states.transpose(1, 2)
            hidden_states = self.pointwise_conv1(hidden_states)
            hidden_states = F.glu(hidden_states, dim=1)
            hidden_states = self.pointwise_conv2(hidden_states)
            return hidden_states.transpose(1, 2)

    return initialised(PointwiseGLU(7, 10)), (torch.randn(2, 9, 7),)


@case
def bilinear_by_config():
    "hidden_act is 'linear': the gate is not activated at all"

    class GatedMLP(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.act = ACT2FN[config.hidden_act]
            self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
            self.c_gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
            self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

        def forward(self, x):
            return self.c_proj(torch.mul(self.act(self.c_gate(x)), self.c_fc(x)))

    config = Config(hidden_size=8, intermediate_size=11, hidden_act="linear", mlp_bias=True)
    return initialised(GatedMLP(config)), (torch.randn(2, 6, 8),)


@case
def reglu_tensor_split():
    "ReGLU, tensor_split of one projection, up first"

    class ReGLU(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_proj = nn.Linear(9, 2 * 14, bias=False)
            self.out_proj = nn.Linear(14, 6)

        def forward(self, x):
            up, gate = torch.tensor_split(self.in_proj(x), 2, dim=-1)
            return self.out_proj(up.mul(torch.relu(gate)))

    return initialised(ReGLU()), (torch.randn(2, 5, 9, requires_grad=True),)


@case
def fp32_gating():
    "mixed precision: the product of gate and up in fp32, the matmuls in the dtype of the weights"

    class Fp32Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = LlamaRMSNorm(10)
            self.gate_up = nn.Linear(10, 2 * 12, bias=False)
            self.down = nn.Linear(12, 10, bias=False)

        def forward(self, x):
            gate, up = self.gate_up(self.norm(x)).split(12, dim=-1)
            act = upcast(gate) / (1.0 + torch.exp(-upcast(gate)))
            h = (act * upcast(up)).to(self.down.weight.dtype)
            return (upcast(x) + upcast(self.down(h))).to(x.dtype)

    return initialised(Fp32Gate()), (torch.randn(2, 7, 10),)


@case
def raw_weights_addmm():
    "an exported model: addmm and mm on transposed weights, sigmoid and two products for the activation"

    class Exported(nn.Module):
        def __init__(self):
            super().__init__()
            self.p_gate_weight = weight(12, 8, fan=8)
            self.p_gate_bias = weight(12, fan=9)
            self.p_up_weight = weight(12, 8, fan=8)
            self.p_down_weight = weight(8, 12, fan=12)
            self.p_down_bias = weight(8, fan=9)

        def forward(self, x):
            flat = torch.ops.aten.view.default(x, [-1, 8])
            addmm = torch.addmm(self.p_gate_bias, flat, self.p_gate_weight.t())
            sigmoid = torch.sigmoid(addmm)
            mul = torch.mul(addmm, sigmoid)
            mm = torch.mm(flat, self.p_up_weight.t())
            mul_1 = torch.mul(mul, mm)
            addmm_1 = torch.addmm(self.p_down_bias, mul_1, self.p_down_weight.t())
            return addmm_1.view(x.shape)

    return Exported(), (torch.randn(2, 5, 8),)


@case
def interleaved_gate_up():
    "gate and up interleaved along the columns, as for tensor parallelism"

    class Interleaved(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = weight(10, 2 * 13, fan=10)
            self.gate_up_proj_bias = weight(2 * 13, fan=12)
            self.down_proj = weight(13, 10, fan=13)
            self.down_proj_bias = weight(10, fan=12)

        def forward(self, hidden_states):
            gate_up = hidden_states @ self.gate_up_proj + self.gate_up_proj_bias
            gate, up = gate_up[..., ::2], gate_up[..., 1::2]
            glu = gate * torch.sigmoid(gate)
            return (up * glu) @ self.down_proj + self.down_proj_bias

    return Interleaved(), (torch.randn(2, 6, 10),)


# Dense, ungated.


@case
def bert_intermediate():
    "BERT: intermediate and output, GELU by erf, post-norm"

    class BertIntermediate(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(9, 16)
            self.intermediate_act_fn = ACT2FN["gelu_python"]

        def forward(self, hidden_states):
            return self.intermediate_act_fn(self.dense(hidden_states))

    class BertOutput(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(16, 9)
            self.LayerNorm = nn.LayerNorm(9, eps=1e-12)
            self.dropout = nn.Dropout(0.1)

        def forward(self, hidden_states, input_tensor):
            hidden_states = self.dropout(self.dense(hidden_states))
            return self.LayerNorm(hidden_states + input_tensor)

    class BertLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.intermediate = BertIntermediate()
            self.output = BertOutput()

        def forward(self, attention_output):
            return self.output(self.intermediate(attention_output), attention_output)

    return initialised(BertLayer().eval()), (torch.randn(2, 7, 9),)


@case
def gpt2_conv1d():
    "GPT-2: Conv1D is a Linear with the weight transposed, by addmm; gelu_new"

    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf = nf
            self.weight = weight(nx, nf, fan=nx)
            self.bias = weight(nf, fan=10)

        def forward(self, x):
            size_out = (*x.size()[:-1], self.nf)
            x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
            return x.view(size_out)

    class GPT2Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_2 = nn.LayerNorm(8)
            self.c_fc = Conv1D(14, 8)
            self.c_proj = Conv1D(8, 14)
            self.act = ACT2FN["gelu_new"]
            self.dropout = nn.Dropout(0.1)

        def forward(self, x):
            return x + self.dropout(self.c_proj(self.act(self.c_fc(self.ln_2(x)))))

    return initialised(GPT2Block().eval()), (torch.randn(2, 5, 8),)


@case
def fairseq_encoder_layer():
    "fairseq: [T, B, C], normalize_before, activation_dropout, activation by name"

    class TransformerEncoderLayer(nn.Module):
        def __init__(self, normalize_before=True):
            super().__init__()
            self.activation_fn = getattr(F, "relu")  # noqa: B009
            self.fc1 = nn.Linear(8, 13)
            self.fc2 = nn.Linear(13, 8)
            self.final_layer_norm = nn.LayerNorm(8)
            self.normalize_before = normalize_before
            self.activation_dropout_p = 0.1
            self.dropout_p = 0.1

        def forward(self, x):
            residual = x
            if self.normalize_before:
                x = self.final_layer_norm(x)
            x = self.activation_fn(self.fc1(x))
            x = F.dropout(x, p=self.activation_dropout_p, training=self.training)
            x = self.fc2(x)
            x = F.dropout(x, p=self.dropout_p, training=self.training)
            x = residual + x
            if not self.normalize_before:
                x = self.final_layer_norm(x)
            return x

    return initialised(TransformerEncoderLayer().eval()), (torch.randn(6, 2, 8),)


@case
def nemotron_squared_relu():
    "Nemotron: up_proj, relu squared, down_proj, no gate"

    class NemotronMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.up_proj = nn.Linear(10, 14, bias=False)
            self.down_proj = nn.Linear(14, 10, bias=False)
            self.act_fn = ACT2FN["relu2"]

        def forward(self, x):
            return self.down_proj(self.act_fn(self.up_proj(x)))

    return initialised(NemotronMLP()), (torch.randn(2, 6, 10, requires_grad=True),)


@case
def rwkv_channel_mix():
    "RWKV: channel mixing with a time shift and a receptance on the output, relu squared as a power"

    class ChannelMix(nn.Module):
        def __init__(self, n_embd, hidden):
            super().__init__()
            self.time_shift = nn.ZeroPad2d((0, 0, 1, -1))
            self.time_mix_k = nn.Parameter(torch.rand(1, 1, n_embd))
            self.time_mix_r = nn.Parameter(torch.rand(1, 1, n_embd))
            self.key = nn.Linear(n_embd, hidden, bias=False)
            self.receptance = nn.Linear(n_embd, n_embd, bias=False)
            self.value = nn.Linear(hidden, n_embd, bias=False)

        def forward(self, x):
            xx = self.time_shift(x)
            xk = x * self.time_mix_k + xx * (1 - self.time_mix_k)
            xr = x * self.time_mix_r + xx * (1 - self.time_mix_r)
            k = self.key(xk)
            k = F.relu(k) ** 2
            kv = self.value(k)
            return torch.sigmoid(self.receptance(xr)) * kv

    return initialised(ChannelMix(8, 15)), (torch.randn(2, 6, 8),)


@case
def conformer_half_step():
    "Conformer: half a feed-forward with swish, x + 0.5 * ff(x)"

    class FeedForwardModule(nn.Module):
        def __init__(self, dim, mult):
            super().__init__()
            self.sequential = nn.Sequential(
                nn.LayerNorm(dim),
                nn.Linear(dim, dim * mult),
                Swish(),
                nn.Dropout(0.0),
                nn.Linear(dim * mult, dim),
                nn.Dropout(0.0),
            )

        def forward(self, x):
            return self.sequential(x)

    class ResidualConnectionModule(nn.Module):
        def __init__(self, module, module_factor=1.0):
            super().__init__()
            self.module = module
            self.module_factor = module_factor

        def forward(self, inputs):
            return self.module(inputs) * self.module_factor + inputs

    return initialised(ResidualConnectionModule(FeedForwardModule(7, 2), 0.5)), (torch.randn(2, 6, 7),)


@case
def dit_modulated():
    "DiT: a conditioned norm before, a conditioned gate on the output, GELU by tanh"

    class DiTBlock(nn.Module):
        def __init__(self, hidden_size):
            super().__init__()
            self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
            self.mlp = nn.ModuleDict(
                {
                    "fc1": nn.Linear(hidden_size, 2 * hidden_size),
                    "act": nn.GELU(approximate="tanh"),
                    "fc2": nn.Linear(2 * hidden_size, hidden_size),
                }
            )
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(5, 3 * hidden_size))

        def forward(self, x, c):
            shift, scale, gate = self.adaLN_modulation(c).chunk(3, dim=1)
            h = self.norm2(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
            for layer in self.mlp.values():
                h = layer(h)
            return x + gate.unsqueeze(1) * h

    return initialised(DiTBlock(8)), (torch.randn(2, 7, 8), torch.randn(2, 5))


@case
def clip_quick_gelu():
    "CLIP: QuickGELU, which is silu(1.702 x) / 1.702"

    class QuickGELU(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x)

    class CLIPMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(9, 13, bias=False)
            self.activation_fn = QuickGELU()
            self.fc2 = nn.Linear(13, 9)

        def forward(self, x):
            return self.fc2(self.activation_fn(self.fc1(x)))

    return initialised(CLIPMLP()), (torch.randn(2, 6, 9),)


# Dense, sub-networks.


@case
def mixtral_all_active():
    "Mixtral without selection: a loop over the experts, += into zeros"

    class MixtralBlockSparseTop2MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1 = nn.Linear(9, 11, bias=False)
            self.w2 = nn.Linear(11, 9, bias=False)
            self.w3 = nn.Linear(9, 11, bias=False)
            self.act_fn = ACT2FN["silu"]

        def forward(self, hidden_states):
            current_hidden_states = self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states)
            return self.w2(current_hidden_states)

    class MixtralBlock(nn.Module):
        def __init__(self, num_experts=4):
            super().__init__()
            self.gate = nn.Linear(9, num_experts, bias=False)
            self.experts = nn.ModuleList([MixtralBlockSparseTop2MLP() for _ in range(num_experts)])

        def forward(self, hidden_states):
            batch_size, sequence_length, hidden_dim = hidden_states.shape
            hidden_states = hidden_states.view(-1, hidden_dim)
            router_logits = self.gate(hidden_states)
            routing_weights = upcast(F.softmax(upcast(router_logits), dim=1)).to(hidden_states.dtype)
            final_hidden_states = torch.zeros_like(hidden_states)
            for i, expert in enumerate(self.experts):
                final_hidden_states += expert(hidden_states) * routing_weights[:, i, None]
            return final_hidden_states.reshape(batch_size, sequence_length, hidden_dim)

    return initialised(MixtralBlock()), (torch.randn(2, 5, 9),)


@case
def gpt_oss_dense_experts():
    "gpt-oss at inference: all experts by bmm, interleaved gate and up with biases, scattered scores"

    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight(4, 8, fan=8)
            self.bias = weight(4, fan=10)

        def forward(self, hidden_states):
            router_logits = F.linear(hidden_states, self.weight, self.bias)
            router_top_value, router_indices = torch.topk(router_logits, 2, dim=-1)
            router_top_value = F.softmax(router_top_value, dim=1, dtype=router_top_value.dtype)
            return torch.zeros_like(router_logits).scatter_(1, router_indices, router_top_value)

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_experts = 4
            self.gate_up_proj = weight(4, 8, 2 * 7, fan=8)
            self.gate_up_proj_bias = weight(4, 2 * 7, fan=10)
            self.down_proj = weight(4, 7, 8, fan=7)

        def forward(self, hidden_states, routing_weights):
            batch_size = hidden_states.shape[0]
            hidden_states = hidden_states.reshape(-1, 8)
            hidden_states = hidden_states.repeat(self.num_experts, 1).view(self.num_experts, -1, 8)
            gate_up = torch.bmm(hidden_states, self.gate_up_proj) + self.gate_up_proj_bias[..., None, :]
            gate, up = gate_up[..., ::2], gate_up[..., 1::2]
            next_states = torch.bmm(up * F.silu(gate), self.down_proj)
            next_states = next_states.view(self.num_experts, batch_size, -1, 8)
            weights = routing_weights.transpose(0, 1).view(self.num_experts, batch_size, -1)[..., None]
            return (next_states * weights).sum(dim=0)

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = Router()
            self.experts = Experts()

        def forward(self, x):
            return self.experts(x, self.router(x.reshape(-1, 8)))

    return MLP(), (torch.randn(2, 5, 8),)


@case
def llama4_experts():
    "Llama 4: [E, D, 2F], tokens repeated for each expert, sigmoid scores on the outputs"

    class Llama4TextExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = weight(3, 9, 2 * 8, fan=9)
            self.down_proj = weight(3, 8, 9, fan=8)

        def forward(self, hidden_states):
            hidden_states = hidden_states.view(self.gate_up_proj.shape[0], -1, 9)
            gate_up = torch.bmm(hidden_states, self.gate_up_proj)
            gate, up = gate_up.chunk(2, dim=-1)
            next_states = torch.bmm((up * F.silu(gate)), self.down_proj)
            return next_states.view(-1, 9)

    class Llama4TextMoe(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = Llama4TextExperts()
            self.router = nn.Linear(9, 3, bias=False)

        def forward(self, hidden_states):
            hidden_states = hidden_states.reshape(-1, 9)
            tokens = hidden_states.shape[0]
            router_scores = torch.sigmoid(upcast(self.router(hidden_states))).to(hidden_states.dtype)
            routed_in = hidden_states.repeat(3, 1)
            routed_out = self.experts(routed_in) * router_scores.transpose(0, 1).reshape(-1, 1)
            return routed_out.reshape(3, tokens, 9).sum(dim=0)

    return initialised(Llama4TextMoe()), (torch.randn(2, 6, 9),)


@case
def vllm_naive_fused_moe():
    "vLLM's reference for fused_moe: w13 [E, 2F, D] and w2 [E, D, F], a python sum over the experts"

    class NaiveMoE(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = weight(3, 10, fan=10)
            self.w13_weight = weight(3, 2 * 8, 10, fan=10)
            self.w2_weight = weight(3, 10, 8, fan=8)

        def expert(self, x, e):
            y = x @ self.w13_weight[e].transpose(0, 1)
            d = y.shape[-1] // 2
            return (F.silu(y[..., :d]) * y[..., d:]) @ self.w2_weight[e].transpose(0, 1)

        def forward(self, x):
            score = torch.softmax(upcast(x @ self.gate.t()), dim=-1)
            w = score.unbind(dim=-1)
            return sum(self.expert(x, e) * w[e].unsqueeze(-1).to(x.dtype) for e in range(3))

    return NaiveMoE(), (torch.randn(7, 10),)


@case
def deepseek_sigmoid_routing():
    "DeepSeek-V3: sigmoid scores masked to the top k, normalised with an epsilon, scaled; a ModuleDict"

    class Gate(nn.Module):
        def __init__(self, dim, n_experts, topk):
            super().__init__()
            self.weight = weight(n_experts, dim, fan=dim)
            self.topk = topk
            self.route_scale = 2.5

        def forward(self, x):
            scores = F.linear(upcast(x), upcast(self.weight)).sigmoid()
            indices = scores.topk(self.topk, dim=-1).indices
            mask = torch.zeros_like(scores).scatter(-1, indices, 1.0)
            weights = scores * mask
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
            return (weights * self.route_scale).type_as(x)

    class MoE(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = Gate(8, 4, 2)
            self.experts = nn.ModuleDict({f"expert_{i}": LlamaMLP(8, 6) for i in range(4)})

        def forward(self, x):
            weights = self.gate(x)
            y = torch.zeros_like(x)
            for i, name in enumerate(self.experts):
                y = y + weights[..., i : i + 1] * self.experts[name](x)
            return y

    return initialised(MoE()), (torch.randn(2, 5, 8),)


@case
def shared_expert_among_routed():
    "the first expert is shared: its weight is a one before the softmax; outputs stacked, matmul, squeeze"

    class SharedAndRouted(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(7, 2)
            self.experts = nn.ModuleList(LlamaMLP(7, 10, "gelu") for _ in range(3))

        def forward(self, x):
            routed = self.router(x).softmax(-1)
            weights = torch.cat([torch.ones_like(routed[..., :1]), routed], dim=-1)
            outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
            return torch.matmul(weights.unsqueeze(-2), outputs).squeeze(-2)

    return initialised(SharedAndRouted()), (torch.randn(2, 6, 7),)


@case
def ensemble_of_bert_ffns():
    "no gate, no routing: feed-forwards with biases, stacked and averaged"

    class FFN(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(8, 9), nn.GELU(), nn.Linear(9, 8))

    class Ensemble(nn.Module):
        def __init__(self, members):
            super().__init__()
            self.members = nn.ModuleList([FFN() for _ in range(members)])
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(x + torch.stack([member(x) for member in self.members]).mean(dim=0))

    return initialised(Ensemble(3)), (torch.randn(2, 5, 8),)


@case
def functional_call_ensemble():
    "torch.func: the state of all experts stacked, one functional call under vmap, weighed by einsum"

    class Vectorised(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(8, 3, bias=False)
            self.experts = nn.ModuleList([LlamaMLP(8, 11) for _ in range(3)])

        def forward(self, x):
            template = self.experts[0]
            states = [dict(expert.named_parameters()) for expert in self.experts]
            stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}

            def call(state, x):
                return torch.func.functional_call(template, state, (x,))

            outputs = torch.vmap(call, in_dims=(0, None))(stacked, x)
            return torch.einsum("ebto,bte->bto", outputs, self.router(x).softmax(dim=-1))

    return initialised(Vectorised()), (torch.randn(2, 6, 8),)


# Several heads, one network each.


@case
def module_list_of_heads():
    "a LlamaMLP for each head of the query projection, chunked and concatenated, then an output projection"

    class MultiHeadFFN(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.num_heads = config.num_heads
            self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.heads = nn.ModuleList(
                [LlamaMLP(config.head_dim, config.intermediate_size) for _ in range(config.num_heads)]
            )
            self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

        def forward(self, x):
            heads = self.q_proj(x).chunk(self.num_heads, dim=-1)
            out = torch.cat([head(q) for head, q in zip(self.heads, heads, strict=True)], dim=-1)
            return x + self.o_proj(out)

    return initialised(MultiHeadFFN(Config())), (torch.randn(2, 7, 15),)


@case
def heads_set_into_buffer():
    "each head writes its columns of an empty buffer; biases on all three; gelu"

    class Buffered(nn.Module):
        def __init__(self, heads, head_dim):
            super().__init__()
            self.head_dim = head_dim
            self.layers = nn.ModuleList(LlamaMLP(head_dim, 9, "gelu", bias=True) for _ in range(heads))

        def forward(self, x):
            out = torch.empty_like(x)
            for h, layer in enumerate(self.layers):
                columns = slice(h * self.head_dim, (h + 1) * self.head_dim)
                out[..., columns] = layer(x[..., columns])
            return out

    return initialised(Buffered(4, 5)), (torch.randn(2, 6, 20),)


@case
def heads_first_matmul():
    "attention's layout: view, transpose(1, 2), matmul with [H, D, F], transpose back and reshape"

    class MultiHeadMLP(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config
            h, f, d = config.num_heads, config.intermediate_size, config.head_dim
            self.query = nn.Linear(config.hidden_size, h * d)
            self.q_norm = LlamaRMSNorm(d)
            self.gate_weight = weight(h, d, f, fan=d)
            self.up_weight = weight(h, d, f, fan=d)
            self.down_weight = weight(h, f, d, fan=f)
            self.dense = nn.Linear(h * d, config.hidden_size)

        def forward(self, hidden_states):
            input_shape = hidden_states.shape[:-1]
            hidden_shape = (*input_shape, -1, self.config.head_dim)
            query_states = self.q_norm(self.query(hidden_states).view(hidden_shape)).transpose(1, 2)
            gate = torch.matmul(query_states, self.gate_weight)
            up = torch.matmul(query_states, self.up_weight)
            context = torch.matmul(F.silu(gate) * up, self.down_weight)
            context = context.transpose(1, 2).contiguous()
            return self.dense(context.reshape(*input_shape, -1))

    return initialised(MultiHeadMLP(Config())), (torch.randn(2, 6, 15),)


@case
def grouped_conv1d_heads():
    "grouped convolutions of kernel 1: a group is a head; channels last only outside"

    class GroupedConvFFN(nn.Module):
        def __init__(self, dim, hidden, groups):
            super().__init__()
            self.norm = nn.LayerNorm(dim)
            self.q = nn.Conv1d(dim, dim, 1)
            self.gate = nn.Conv1d(dim, hidden * groups, 1, groups=groups)
            self.up = nn.Conv1d(dim, hidden * groups, 1, groups=groups)
            self.down = nn.Conv1d(hidden * groups, dim, 1, groups=groups)
            self.act = nn.SiLU()

        def forward(self, x):
            y = self.q(self.norm(x).permute(0, 2, 1))
            y = self.down(self.act(self.gate(y)) * self.up(y))
            return x + y.permute(0, 2, 1)

    return initialised(GroupedConvFFN(15, 8, 3)), (torch.randn(2, 7, 15),)


@case
def grouped_conv1d_fused_halves():
    "one grouped convolution for gate and up, so that the halves lie within each group; head scales"

    class FusedGroupedConv(nn.Module):
        def __init__(self, heads, dim, hidden):
            super().__init__()
            self.heads = heads
            self.conv_in = nn.Conv1d(heads * dim, heads * 2 * hidden, 1, groups=heads, bias=False)
            self.conv_out = nn.Conv1d(heads * hidden, heads * dim, 1, groups=heads, bias=False)
            self.head_scale = nn.Parameter(torch.rand(heads) + 0.5)

        def forward(self, x):
            b, _, t = x.shape
            gate, up = self.conv_in(x).view(b, self.heads, 2, -1, t).unbind(2)
            hidden = F.gelu(gate, approximate="tanh") * up
            out = self.conv_out(hidden.flatten(1, 2)).unflatten(1, (self.heads, -1))
            return (out * self.head_scale.view(1, -1, 1, 1)).flatten(1, 2)

    return initialised(FusedGroupedConv(2, 6, 9)), (torch.randn(2, 12, 5),)


@case
def megatron_baddbmm_scores():
    "Megatron's attention turned feed-forward: [s, b, h], heads folded into the batch, baddbmm with alpha"

    class CoreFFN(nn.Module):
        def __init__(self, heads, head_dim, memory):
            super().__init__()
            self.heads, self.head_dim, self.memory = heads, head_dim, memory
            self.norm_factor = math.sqrt(head_dim)
            self.query = nn.Linear(heads * head_dim, heads * head_dim)
            self.keys = weight(memory, heads * head_dim, fan=2)
            self.values = weight(memory, heads * head_dim, fan=memory)
            self.dense = nn.Linear(heads * head_dim, heads * head_dim, bias=False)

        def forward(self, hidden_states):
            sq, b, np, hn = *hidden_states.shape[:2], self.heads, self.head_dim
            query_layer = self.query(hidden_states).view(sq, b * np, hn)
            key_layer = self.keys.view(self.memory, 1, np, hn).expand(-1, b, -1, -1).reshape(-1, b * np, hn)
            value_layer = self.values.view(self.memory, 1, np, hn).expand(-1, b, -1, -1)
            value_layer = value_layer.reshape(-1, b * np, hn)
            buffer = torch.empty(
                b * np, sq, self.memory, dtype=hidden_states.dtype, device=hidden_states.device
            )
            scores = torch.baddbmm(
                buffer,
                query_layer.transpose(0, 1),
                key_layer.transpose(0, 1).transpose(1, 2),
                beta=0.0,
                alpha=(1.0 / self.norm_factor),
            )
            probs = F.relu(scores)
            context_layer = torch.bmm(probs, value_layer.transpose(0, 1))
            context_layer = context_layer.view(b, np, sq, hn).permute(2, 0, 1, 3).contiguous()
            return self.dense(context_layer.view(sq, b, np * hn))

    return initialised(CoreFFN(3, 5, 8)), (torch.randn(7, 2, 15),)


@case
def bmm_over_heads_flat_tokens():
    "tokens flat, heads in front: bmm with one [H, D, 2F] parameter, view as halves, silu in place"

    class BatchedHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_proj = weight(4, 5, 2 * 7, fan=5)
            self.out_proj = weight(4, 7, 6, fan=7)

        def forward(self, x):
            n = x.size(0)
            q = x.view(n, 4, 5).transpose(0, 1)
            h = torch.bmm(q, self.in_proj).view(4, n, 2, 7)
            gate, up = h.select(2, 0).clone(), h.select(2, 1)
            F.silu(gate, inplace=True)
            return torch.bmm(gate.mul_(up), self.out_proj).transpose(0, 1).reshape(n, -1)

    return BatchedHeads(), (torch.randn(9, 20, requires_grad=True),)


@case
def vmap_over_heads():
    "torch.vmap over the heads, a plain function inside"

    def head(q, gate, up, down):
        g = q @ gate.mT
        return (g * g.sigmoid() * (q @ up.mT)) @ down

    class VmapHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.RMSNorm(6)
            self.gate = weight(3, 11, 6, fan=6)
            self.up = weight(3, 11, 6, fan=6)
            self.down = weight(3, 11, 6, fan=11)

        def forward(self, x):
            q = self.norm(x.unflatten(-1, (3, 6)))
            out = torch.vmap(head, in_dims=(2, 0, 0, 0), out_dims=2)(q, self.gate, self.up, self.down)
            return out.flatten(-2)

    return initialised(VmapHeads()), (torch.randn(2, 5, 18),)


@case
def heads_as_columns_of_linears():
    "weights [d_ff, d_model] of ordinary Linears, of which each head takes its columns; relu squared gate"

    class SharedWidth(nn.Module):
        def __init__(self, d_model, d_ff, n_heads):
            super().__init__()
            self.n_heads = n_heads
            self.w_gate = nn.Linear(d_model, d_ff, bias=False)
            self.w_up = nn.Linear(d_model, d_ff, bias=False)
            self.w_down = nn.Linear(d_ff, d_model, bias=False)

        def split_heads(self, x):
            return x.unflatten(-1, (self.n_heads, -1))

        def forward(self, x):
            q = self.split_heads(F.layer_norm(x, x.shape[-1:]))
            gate = torch.einsum("bshd,fhd->bhsf", q, self.split_heads(self.w_gate.weight))
            up = torch.einsum("bshd,fhd->bhsf", q, self.split_heads(self.w_up.weight))
            gate = F.relu(gate)
            down = self.w_down.weight.view(self.n_heads, -1, self.w_down.in_features)
            out = torch.einsum("bhsf,hdf->bshd", gate * gate * up, down)
            return x + out.flatten(2)

    model = initialised(SharedWidth(14, 9, 2))
    nn.init.normal_(model.w_gate.weight, std=7**-0.5)
    nn.init.normal_(model.w_up.weight, std=7**-0.5)
    return model, (torch.randn(2, 6, 14),)


# Several heads and sub-networks.


@case
def flash_mhf_module():
    "FlashMHF as in its paper: sub-networks per head, sigmoids over their sum, one parameter for all three"

    class FlashMHF(nn.Module):
        def __init__(self, config):
            super().__init__()
            h, e, f, d = config.num_heads, config.num_experts, config.intermediate_size, config.head_dim
            self.h, self.e, self.d = h, e, d
            self.q_proj = nn.Linear(config.hidden_size, h * d, bias=False)
            self.kuv = weight(3, h, e, f, d, fan=d)
            self.router = nn.Linear(config.hidden_size, h * e, bias=False)
            self.o_proj = nn.Linear(h * d, config.hidden_size, bias=False)
            self.eps = 1e-6

        def forward(self, x):
            b, t, _ = x.shape
            q = self.q_proj(x).view(b, t, self.h, self.d)
            scores = torch.sigmoid(self.router(x)).view(b, t, self.h, self.e)
            r = scores / (scores.sum(dim=-1, keepdim=True) + self.eps)
            k, u, v = self.kuv.unbind(0)
            gate = F.silu(torch.einsum("bthd,hefd->bthef", q, k))
            hidden = gate * torch.einsum("bthd,hefd->bthef", q, u) * r.unsqueeze(-1)
            out = torch.einsum("bthef,hefd->bthd", hidden, v)
            return self.o_proj(out.reshape(b, t, -1))

    return initialised(FlashMHF(Config(intermediate_size=8))), (torch.randn(2, 7, 15),)


@case
def nested_module_lists():
    "Linears at both levels: heads of experts, each with its own router, python sums"

    class Head(nn.Module):
        def __init__(self, dim, hidden, experts):
            super().__init__()
            self.router = nn.Linear(dim, experts)
            self.experts = nn.ModuleList(LlamaMLP(dim, hidden, "swish") for _ in range(experts))

        def forward(self, q):
            w = F.softmax(self.router(q), dim=-1)
            return sum(expert(q) * w[..., i].unsqueeze(-1) for i, expert in enumerate(self.experts))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(14)
            self.heads = nn.ModuleList([Head(7, 9, 3) for _ in range(2)])

        def forward(self, x):
            qs = torch.split(self.norm(x), 7, dim=-1)
            return x + torch.cat([head(q) for head, q in zip(self.heads, qs, strict=True)], dim=-1)

    return initialised(Layer()), (torch.randn(2, 5, 14),)


@case
def linears_per_expert_heads_inside():
    "ModuleList over sub-networks only: a batched head product each, addcmul with the routing weight"

    class SubNetwork(nn.Module):
        def __init__(self, heads, hidden, dim):
            super().__init__()
            self.gate_up = weight(heads, 2, hidden, dim, fan=dim)
            self.down = weight(heads, hidden, dim, fan=hidden)

        def forward(self, q):
            gate, up = torch.einsum("bthd,hxfd->xbthf", q, self.gate_up)
            return torch.einsum("bthf,hfo->btho", gate / (1 + torch.exp(-gate)) * up, self.down)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(15, 3 * 4)
            self.sub_networks = nn.ModuleList([SubNetwork(3, 7, 5) for _ in range(4)])

        def forward(self, x):
            q = x.view(*x.shape[:2], 3, 5)
            r = self.router(x).view(*x.shape[:2], 3, 4).softmax(dim=-1)
            out = torch.zeros_like(q)
            for e, net in enumerate(self.sub_networks):
                out = torch.addcmul(out, r[..., e, None], net(q))
            return out.flatten(2)

    return initialised(Layer()), (torch.randn(2, 6, 15),)


@case
def baddbmm_accumulation():
    "a preallocated accumulator [H, N, O]: baddbmm_ for each sub-network, the routing weight before V"

    class Accumulated(nn.Module):
        def __init__(self):
            super().__init__()
            self.w_k = weight(2, 3, 6, 8, fan=6)
            self.w_u = weight(2, 3, 6, 8, fan=6)
            self.w_v = weight(2, 3, 8, 5, fan=8)
            self.router = nn.Linear(18, 3 * 2, bias=False)

        def forward(self, x):
            n = x.shape[0]
            q = x.view(n, 3, 6).transpose(0, 1).contiguous()
            r = self.router(x).view(n, 3, 2).softmax(-1).permute(1, 2, 0)
            out = x.new_zeros(3, n, 5)
            for e in range(2):
                hidden = F.silu(torch.bmm(q, self.w_k[e])) * torch.bmm(q, self.w_u[e])
                out.baddbmm_(hidden * r[:, e].unsqueeze(-1), self.w_v[e])
            return out.transpose(0, 1).flatten(1)

    return initialised(Accumulated()), (torch.randn(7, 18),)


@case
def grouped_query_repeat_kv():
    "grouped heads: Llama's repeat_kv on the weights, top-k mask of -inf before the softmax"

    def repeat_kv(w, n_rep):
        kv, e, f, d = w.shape
        if n_rep == 1:
            return w
        return w[:, None].expand(kv, n_rep, e, f, d).reshape(kv * n_rep, e, f, d)

    class GroupedFFN(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = nn.Linear(20, 20, bias=False)
            self.keys = weight(2, 3, 6, 5, fan=5)
            self.ups = weight(2, 3, 6, 5, fan=5)
            self.values = weight(2, 3, 6, 5, fan=6)
            self.router = nn.Linear(20, 4 * 3)

        def forward(self, x):
            b, t, _ = x.shape
            q = self.q_proj(x).view(b, t, 4, 5).transpose(1, 2)
            logits = self.router(x).view(b, t, 4, 3).transpose(1, 2)
            threshold = logits.topk(2, dim=-1).values[..., -1:]
            r = logits.masked_fill(logits < threshold, float("-inf")).softmax(dim=-1)
            k, u, v = (repeat_kv(w, 2) for w in (self.keys, self.ups, self.values))
            gate = torch.matmul(q.unsqueeze(2), k.transpose(-1, -2))
            up = torch.matmul(q.unsqueeze(2), u.transpose(-1, -2))
            y = torch.matmul(F.silu(gate) * up, v)
            y = (y * r.permute(0, 1, 3, 2).unsqueeze(-1)).sum(dim=2)
            return y.transpose(1, 2).reshape(b, t, -1)

    return initialised(GroupedFFN()), (torch.randn(2, 7, 20),)


@case
def grouped_query_repeat_interleave():
    "grouped heads by repeat_interleave, one sub-network, gelu by tanh in fp32, biases per key head"

    class Interleaved(nn.Module):
        def __init__(self):
            super().__init__()
            self.w_gate = weight(2, 8, 5, fan=5)
            self.w_up = weight(2, 8, 5, fan=5)
            self.b_gate = weight(2, 8, fan=10)
            self.b_up = weight(2, 8, fan=10)
            self.w_down = weight(2, 5, 8, fan=8)

        def forward(self, x):
            q = x.unflatten(-1, (4, 5))
            w_gate, w_up, w_down, b_gate, b_up = (
                w.repeat_interleave(2, dim=0)
                for w in (self.w_gate, self.w_up, self.w_down, self.b_gate, self.b_up)
            )
            gate = torch.einsum("...hd,hfd->...hf", q, w_gate) + b_gate
            up = torch.einsum("...hd,hfd->...hf", q, w_up) + b_up
            act = NewGELUActivation()(upcast(gate)).to(x.dtype)
            return torch.einsum("...hf,hof->...ho", act * up, w_down).flatten(-2)

    return Interleaved(), (torch.randn(2, 6, 20),)


@case
def grouped_heads_tiled():
    "grouped heads by repeat: heads share in turn, not in runs; learned weights of heads and sub-networks"

    class Tiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.kuv = nn.ParameterDict(
                {name: weight(2, 3, 7, 6, fan=fan) for name, fan in (("k", 6), ("u", 6), ("v", 7))}
            )
            self.mix = weight(4, 3, fan=1)

        def forward(self, x):
            b, t, _ = x.shape
            q = F.normalize(x.view(b, t, 4, 6), dim=-1) * 6**0.5
            k, u, v = (self.kuv[name].repeat(2, 1, 1, 1) for name in "kuv")
            gate = torch.einsum("bthd,hefd->bhetf", q, k)
            up = torch.einsum("bthd,hefd->bhetf", q, u)
            per_net = torch.einsum("bhetf,hefo->bhteo", F.silu(gate) * up, v)
            mix = self.mix.softmax(-1)
            return torch.einsum("bhteo,he->btho", per_net, mix).reshape(b, t, -1)

    return Tiled(), (torch.randn(2, 5, 24, requires_grad=True),)


@case
def grouped_conv1d_experts():
    "grouped Conv1d for heads and sub-networks: width H * E * F, the router a Conv1d too"

    class ConvMHF(nn.Module):
        def __init__(self, heads, experts, hidden, dim):
            super().__init__()
            self.h, self.e, self.f, self.d = heads, experts, hidden, dim
            width = heads * experts * hidden
            self.gate = nn.Conv1d(heads * dim, width, 1, groups=heads, bias=False)
            self.up = nn.Conv1d(heads * dim, width, 1, groups=heads, bias=False)
            self.down = nn.Conv1d(width, heads * dim, 1, groups=heads, bias=False)
            self.router = nn.Conv1d(heads * dim, heads * experts, 1)

        def forward(self, x):
            x = x.transpose(1, 2)
            b, _, t = x.shape
            r = torch.sigmoid(self.router(x)).view(b, self.h, self.e, t)
            r = r / r.sum(dim=2, keepdim=True).clamp(min=1e-4)
            hidden = F.silu(self.gate(x)) * self.up(x)
            hidden = hidden.view(b, self.h, self.e, self.f, t) * r.unsqueeze(3)
            return self.down(hidden.view(b, -1, t)).transpose(1, 2)

    return initialised(ConvMHF(3, 4, 7, 5)), (torch.randn(2, 6, 15),)


@case
def one_linear_for_all_scores():
    "the weight of a Linear viewed as [H, E, 2, F, D] at each call, weights cast to the compute dtype"

    class Packed(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.c = config
            rows = config.num_heads * config.num_experts * 2 * config.intermediate_size
            self.gate_up = nn.Linear(config.head_dim, rows, bias=False)
            self.down = nn.Linear(rows // 2, config.head_dim, bias=False)
            self.router = nn.Linear(config.hidden_size, config.num_heads * config.num_experts)

        def forward(self, x):
            h, e, f, d = (
                self.c.num_heads,
                self.c.num_experts,
                self.c.intermediate_size,
                self.c.head_dim,
            )
            dtype = torch.promote_types(x.dtype, torch.float32)
            w = self.gate_up.weight.view(h, e, 2, f, d).to(dtype)
            q = x.unflatten(-1, (h, d)).to(dtype)
            scores = torch.einsum("b t h d, h e z f d -> z b t h e f", q, w)
            hidden = scores[1] * F.silu(scores[0])
            r = self.router(x).unflatten(-1, (h, e)).softmax(-1).to(dtype)
            v = self.down.weight.view(d, h, e, f).to(dtype)
            out = torch.einsum("bthef,dhef,bthe->bthd", hidden, v, r)
            return out.flatten(-2).to(x.dtype)

    return initialised(Packed(Config(intermediate_size=6))), (torch.randn(2, 7, 15),)


@case
def einops_layer():
    "einops throughout: Rearrange in a Sequential, einsum with words, repeat for the sub-networks, reduce"

    class EinopsMHF(nn.Module):
        def __init__(self, heads=3, subs=2, hidden=8, dim=5):
            super().__init__()
            self.subs = subs
            self.to_q = nn.Sequential(
                nn.Linear(heads * dim, heads * dim, bias=False),
                Rearrange("b n (h d) -> b h n d", h=heads),
                nn.LayerNorm(dim),
            )
            self.to_r = nn.Sequential(
                nn.Linear(heads * dim, heads * subs), Rearrange("b n (h e) -> b h e n", h=heads)
            )
            self.k = weight(heads, subs, dim, hidden, fan=dim)
            self.u = weight(heads, subs, dim, hidden, fan=dim)
            self.v = weight(heads, subs, hidden, dim, fan=hidden)

        def forward(self, x):
            q = repeat(self.to_q(x), "b h n d -> b h e n d", e=self.subs)
            r = self.to_r(x).softmax(dim=-2)
            gate = einops_einsum(q, self.k, "b head sub n d, head sub d f -> b head sub n f")
            up = einops_einsum(q, self.u, "b head sub n d, head sub d f -> b head sub n f")
            y = F.silu(gate) * up @ self.v
            y = reduce(y * rearrange(r, "b h e n -> b h e n 1"), "b h e n d -> b h n d", "sum")
            return rearrange(y, "b h n d -> b n (h d)")

    return initialised(EinopsMHF()), (torch.randn(2, 6, 15),)


@case
def vmap_sub_networks_in_head_loop():
    "a loop over heads, inside it torch.vmap over sub-networks, tensordot with learned weights"

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up = nn.ParameterList([weight(4, 2 * 6, 5, fan=5) for _ in range(2)])
            self.down = nn.ParameterList([weight(4, 5, 6, fan=6) for _ in range(2)])
            self.alpha = nn.ParameterList([weight(4, fan=1) for _ in range(2)])

        def forward(self, x):
            outputs = []
            for h, q in enumerate(x.tensor_split(2, dim=-1)):

                def net(w_in, w_out, q=q):
                    gate, up = F.linear(q, w_in).split(6, dim=-1)
                    return F.linear(F.silu(gate) * up, w_out)

                ys = torch.vmap(net, out_dims=-2)(self.gate_up[h], self.down[h])
                outputs.append(torch.tensordot(ys, self.alpha[h].softmax(0), dims=([-2], [0])))
            return torch.stack(outputs, dim=2).view_as(x)

    return Mixed(), (torch.randn(2, 7, 10),)


@case
def ungated_memory_heads():
    "key-value memories: heads and banks, scaled scores, gelu, bias per slot, a mixture by sigmoid"

    class MemoryLayer(nn.Module):
        def __init__(self, heads=2, banks=3, slots=9, dim=6):
            super().__init__()
            self.heads, self.scale = heads, dim**-0.5
            self.q_proj = nn.Linear(11, heads * dim)
            self.keys = weight(heads, banks, slots, dim, fan=1)
            self.slot_bias = weight(heads, banks, slots, fan=8)
            self.values = weight(heads, banks, slots, dim, fan=slots)
            self.mix = nn.Linear(11, heads * banks)
            self.out = nn.Linear(heads * dim, 11, bias=False)

        def forward(self, x):
            q = self.q_proj(x).unflatten(-1, (self.heads, -1))
            attn = torch.einsum("nhd,hbsd->nhbs", q, self.keys) * self.scale + self.slot_bias
            read = torch.einsum("nhbs,hbsd->nhbd", F.gelu(attn), self.values)
            mix = torch.sigmoid(self.mix(x)).unflatten(-1, (self.heads, -1))
            return self.out((read * mix[..., None]).sum(-2).flatten(1))

    return initialised(MemoryLayer()), (torch.randn(8, 11),)


@case
def ungated_module_list_relu_squared():
    "heads in a ModuleDict, each with two Linears and relu squared as a product, stacked behind a reshape"

    class PrimerHead(nn.Module):
        def __init__(self, dim, hidden):
            super().__init__()
            self.fc1 = nn.Linear(dim, hidden)
            self.fc2 = nn.Linear(hidden, dim)

        def forward(self, x):
            x = torch.relu(self.fc1(x))
            return self.fc2(x * x)

    class Primer(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({str(i): PrimerHead(6, 10) for i in range(3)})
            self.norm = nn.LayerNorm(18)

        def forward(self, x):
            b, t, d = x.shape
            parts = self.norm(x).reshape(b, t, 3, 6).unbind(dim=2)
            parts = [self.heads[str(i)](part) for i, part in enumerate(parts)]
            return x + torch.stack(parts, dim=2).reshape(b, t, d)

    return initialised(Primer()), (torch.randn(2, 7, 18),)


@case
def wide_linear_for_all_experts():
    "exp(x) / (1 + exp(x)) * x, one Linear for all sub-networks, routing weights repeated over F"

    class WideExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.f = 3, 6
            self.gate = nn.Linear(8, 18, bias=False)
            self.up = nn.Linear(8, 18, bias=False)
            self.down = nn.Linear(18, 8, bias=False)
            self.router = nn.Linear(8, 3)

        def forward(self, x):
            g = self.gate(x)
            hidden = torch.exp(g) / (1 + torch.exp(g)) * g * self.up(x)
            r = self.router(x).softmax(-1).repeat_interleave(self.f, dim=-1)
            return self.down(hidden * r)

    return initialised(WideExperts()), (torch.randn(2, 5, 8),)


@case
def configured_sigmoid_glu():
    "config flags choose: sigmoid GLU, no norm, a softmax with temperature, an output multiplier"

    class Flagged(nn.Module):
        def __init__(self, activation="sigmoid", qk_norm=False, router="softmax", temperature=0.7):
            super().__init__()
            self.act = ACT2FN[activation]
            self.qk_norm = nn.RMSNorm(5) if qk_norm else nn.Identity()
            self.router_kind, self.temperature = router, temperature
            self.multiplier = 1.25
            self.k = weight(4, 2, 6, 5, fan=5)
            self.u = weight(4, 2, 6, 5, fan=5)
            self.v = weight(4, 2, 6, 5, fan=6)
            self.router = nn.Linear(20, 8, bias=False) if router else None

        def forward(self, x):
            q = self.qk_norm(x.view(*x.shape[:-1], 4, 5))
            gate = self.act(torch.einsum("bthd,hefd->behtf", q, self.k))
            up = torch.einsum("bthd,hefd->behtf", q, self.u)
            y = torch.einsum("behtf,hefo->betho", gate * up, self.v)
            if self.router is None:
                return y.sum(1).flatten(2)
            logits = self.router(x).view(*x.shape[:-1], 4, 2) / self.temperature
            r = logits.softmax(-1) if self.router_kind == "softmax" else logits.sigmoid()
            return self.multiplier * torch.einsum("betho,bthe->btho", y, r).flatten(2)

    return initialised(Flagged()), (torch.randn(2, 7, 20),)


@case
def routing_weights_given():
    "the routing weight is an input, as from a router elsewhere; up multiplier, bmm over H * E"

    class ExpertBank(nn.Module):
        def __init__(self, heads=4, experts=3, hidden=7, dim=6):
            super().__init__()
            self.heads, self.experts = heads, experts
            self.w_in = weight(heads * experts, 2, hidden, dim, fan=dim)
            self.w_out = weight(heads * experts, hidden, dim, fan=hidden)
            self.up_multiplier = 0.6

        def forward(self, x, routing):
            b, t, _ = x.shape
            h, e = self.heads, self.experts
            q = x.view(b * t, h, 1, -1).expand(-1, -1, e, -1).permute(1, 2, 0, 3).reshape(h * e, b * t, -1)
            gate = torch.bmm(q, self.w_in[:, 0].transpose(1, 2))
            up = torch.bmm(q, self.w_in[:, 1].transpose(1, 2)) * self.up_multiplier
            y = torch.bmm(F.silu(gate) * up, self.w_out)
            y = y.view(h, e, b, t, -1) * routing.permute(2, 3, 0, 1).unsqueeze(-1)
            return y.sum(1).permute(1, 2, 0, 3).reshape(b, t, -1)

    return ExpertBank(), (torch.randn(2, 5, 24), torch.rand(2, 5, 4, 3, requires_grad=True))


@case
def broadcast_matmul_heads_and_experts():
    "routing by a matmul of [.., 1, E] and [.., E, O], squeezed; gate and up by one broadcast matmul"

    class MatmulRouted(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(15)
            self.wi = weight(3, 4, 5, 2 * 6, fan=5)
            self.wo = weight(3, 4, 6, 5, fan=6)
            self.router = weight(15, 3 * 4, fan=15)

        def forward(self, x):
            x = self.norm(x)
            q = x.view(2, -1, 3, 1, 1, 5)
            h = q @ self.wi
            up, gate = h[..., :6], h[..., 6:]
            y = (up * gate.sigmoid() * gate) @ self.wo
            r = torch.softmax((x @ self.router).view(2, -1, 3, 1, 4), dim=-1)
            return (r @ y.squeeze(-2)).squeeze(-2).flatten(2)

    return initialised(MatmulRouted()), (torch.randn(2, 7, 15),)


@case
def expert_outputs_set_into_buffer():
    "outputs of all sub-networks set into a buffer [B, T, H, E, O], then a product with the weights and a sum"

    class BufferOfExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = nn.Linear(9, 2 * 5)
            self.gates = nn.ModuleList([nn.Linear(5, 7, bias=False) for _ in range(2 * 3)])
            self.ups = nn.ModuleList([nn.Linear(5, 7, bias=False) for _ in range(2 * 3)])
            self.downs = nn.ModuleList([nn.Linear(7, 5, bias=False) for _ in range(2 * 3)])
            self.router = nn.Linear(9, 2 * 3)
            self.o_proj = nn.Linear(10, 9)

        def forward(self, x):
            b, t, _ = x.shape
            q = self.q_proj(x).view(b, t, 2, 5)
            y = x.new_empty(b, t, 2, 3, 5)
            for h in range(2):
                for e in range(3):
                    i = 3 * h + e
                    hidden = F.silu(self.gates[i](q[:, :, h])) * self.ups[i](q[:, :, h])
                    y[:, :, h, e] = self.downs[i](hidden)
            r = self.router(x).view(b, t, 2, 3, 1).softmax(dim=3)
            return x + self.o_proj((y * r).sum(dim=3).reshape(b, t, 10))

    return initialised(BufferOfExperts()), (torch.randn(2, 6, 9),)


@case
def bert_chunked_feed_forward():
    "Hugging Face, chunk_size_feed_forward: the sequence in chunks through one intermediate and output"

    def apply_chunking_to_forward(forward_fn, chunk_size, chunk_dim, *input_tensors):
        if chunk_size > 0:
            num_chunks = input_tensors[0].shape[chunk_dim] // chunk_size
            chunks = tuple(tensor.chunk(num_chunks, dim=chunk_dim) for tensor in input_tensors)
            return torch.cat(tuple(forward_fn(*chunk) for chunk in zip(*chunks, strict=True)), dim=chunk_dim)
        return forward_fn(*input_tensors)

    class ChunkedLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.chunk_size_feed_forward = 3
            self.intermediate = nn.Linear(8, 13)
            self.output = nn.Linear(13, 8)

        def feed_forward_chunk(self, attention_output):
            return self.output(F.gelu(self.intermediate(attention_output)))

        def forward(self, x):
            return x + apply_chunking_to_forward(self.feed_forward_chunk, self.chunk_size_feed_forward, 1, x)

    return initialised(ChunkedLayer()), (torch.randn(2, 9, 8),)


@case
def conv1d_module_lists():
    "ModuleLists of pointwise Conv1d at both levels over [B, C, T], ungated silu, learned averages"

    class ConvHead(nn.Module):
        def __init__(self, channels, hidden, experts):
            super().__init__()
            self.expand = nn.ModuleList([nn.Conv1d(channels, hidden, 1) for _ in range(experts)])
            self.reduce = nn.ModuleList([nn.Conv1d(hidden, channels, 1, bias=False) for _ in range(experts)])
            self.logits = weight(experts, fan=1)

        def forward(self, x):
            p = self.logits.softmax(dim=0)
            out = 0
            for i in range(len(self.expand)):
                out = out + p[i] * self.reduce[i](F.silu(self.expand[i](x)))
            return out

    class ConvHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList([ConvHead(6, 9, 4) for _ in range(3)])

        def forward(self, x):
            parts = torch.chunk(x, len(self.heads), dim=1)
            return x + torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)], dim=1)

    return initialised(ConvHeads()), (torch.randn(2, 18, 5),)


@case
def lora_merged():
    "LoRA merged at each call: base weight plus scaling * B A, for gate and up of one fused projection"

    class LoRALinear(nn.Linear):
        def __init__(self, in_features, out_features, rank=2, alpha=3):
            super().__init__(in_features, out_features, bias=False)
            self.lora_A = weight(rank, in_features, fan=in_features)
            self.lora_B = weight(out_features, rank, fan=10)
            self.scaling = alpha / rank

        def forward(self, x):
            return F.linear(x, self.weight + self.scaling * self.lora_B @ self.lora_A)

    class LoRAMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = LoRALinear(8, 2 * 11)
            self.down_proj = nn.Linear(11, 8, bias=False)

        def forward(self, x):
            up, gate = self.gate_up_proj(x).view(*x.shape[:-1], 2, -1).unbind(dim=-2)
            return self.down_proj(up * nn.SiLU()(gate))

    return initialised(LoRAMLP()), (torch.randn(2, 6, 8),)


def _router_outside_autocast():
    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(15, 3 * 4)

        def forward(self, x):
            with torch.autocast(device_type=x.device.type, enabled=False):
                logits = F.linear(upcast(x), upcast(self.proj.weight), upcast(self.proj.bias))
                return logits.unflatten(-1, (3, 4)).softmax(dim=-1)

    class AutocastMHF(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = Router()
            self.q_proj = nn.Linear(15, 15, bias=False)
            self.w1 = weight(3, 4, 5, 6, fan=5)
            self.w3 = weight(3, 4, 5, 6, fan=5)
            self.w2 = weight(3, 4, 6, 5, fan=6)
            self.o_proj = nn.Linear(15, 15, bias=False)

        def forward(self, x):
            q = self.q_proj(x).view(*x.shape[:2], 3, 1, 5).permute(0, 2, 3, 1, 4)
            hidden = F.silu(q @ self.w1) * (q @ self.w3)
            y = (hidden @ self.w2).permute(0, 3, 1, 2, 4)
            out = (y * self.router(x).unsqueeze(-1).to(y.dtype)).sum(dim=3)
            return self.o_proj(out.flatten(2))

    return initialised(AutocastMHF()), (torch.randn(2, 7, 15),)


router_outside_autocast = Case(
    "router_outside_autocast", _router_outside_autocast, lambda: torch.autocast("cpu", dtype=torch.bfloat16)
)


CASES = [value for value in globals().values() if isinstance(value, Case)]
