"""Hidden values and the gradients of the scores, in float32, inside the Triton kernels.

An activation is the name of one that is written here, or two programs, as ``expressions.program`` writes
them, which are run step by step when a kernel is compiled: nothing is left of them but the instructions.
"""

import triton
import triton.language as tl


@triton.jit
def _fast_tanh(x):
    """One instruction of the special function unit; absolute error below 2^-11."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _sigmoids(x):
    """The sigmoids of x and of -x by one exponential; 1 - sigmoid(x) has few digits where x is large."""
    e = tl.exp(-x)
    s = 1 / (1 + e)
    return s, tl.where(s < 0.5, 1 - s, e * s)


@triton.jit
def activation(x, NAME: tl.constexpr, FAST: tl.constexpr):
    """The activation. For a FAST silu, x is half of its argument: silu(2x) = x + x tanh(x)."""
    if NAME == "silu":
        if FAST:
            y = x + x * _fast_tanh(x)
        else:
            y = x * tl.sigmoid(x)
    elif NAME == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        y = 0.5 * x * (1 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NAME == "relu":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "relu_squared":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        y = y * y
    elif NAME == "sigmoid":
        y = tl.sigmoid(x)
    else:
        tl.static_assert(NAME == "identity")
        y = x
    return y


@triton.jit
def slope(x, NAME: tl.constexpr, FAST: tl.constexpr):
    """The derivative of the activation, x as in `activation`."""
    if NAME == "silu":
        if FAST:
            t = _fast_tanh(x)
            y = (0.5 + 0.5 * t) * (1 + x * (1 - t))
        else:
            s, of_minus = _sigmoids(x)
            y = s * (1 + x * of_minus)
    elif NAME == "gelu":
        y = 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif NAME == "gelu_tanh":
        t = _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        y = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * x * x)
    elif NAME == "relu":
        y = tl.full(x.shape, 1.0, tl.float32)  # what is cut off comes after
    elif NAME == "relu_squared":
        y = 2 * tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "sigmoid":
        s, of_minus = _sigmoids(x)
        y = s * of_minus
    else:
        tl.static_assert(NAME == "identity")
        y = tl.full(x.shape, 1.0, tl.float32)
    return y


@triton.constexpr_function
def is_name(activation):
    """Whether an activation is one that is written here, and not a program."""
    return " | " not in activation


@triton.constexpr_function
def _program(activation, number):
    """The program of the hidden value, or that of the gradients, which are written one after the other."""
    return activation.split(" | ")[number]


@triton.constexpr_function
def _steps(program):
    """How many steps a program has, as ``expressions.program`` writes it."""
    return len(program.split("; "))


@triton.constexpr_function
def _word(program, step, place):
    return program.split("; ")[step].split(" ")[place]


@triton.constexpr_function
def _operand(program, step, place):
    """Which value an operand is; of what has fewer, the last one."""
    words = program.split("; ")[step].split(" ")
    return int(words[min(place, len(words) - 1)])


@triton.constexpr_function
def _number(program, step):
    return float(program.split("; ")[step].split(" ")[1])


@triton.jit
def _accurate_tanh(x):
    """tanh, by a series near 0, where the difference of two sigmoids has few digits.

    What the series leaves out is below 0.2**10 / 112 of it, less than a rounding; beyond, the difference is
    off by up to two roundings of 1, which are ten of the result.
    """
    y = x * x
    series = x + x * y * (-0.33333334 + y * (0.13333334 + y * (-0.05396825 + y * 0.021869488)))
    return tl.where(tl.abs(x) < 0.2, series, _tanh(x))


@triton.jit
def _log1p(x):
    """log(1 + x): of what 1 + x is rounded to, and as much more as was rounded; infinite where x is."""
    u = 1 + x
    return tl.where((u == 1) | (u == float("inf")), x, tl.log(u) * (x / (u - 1)))


@triton.jit
def _expm1(x):
    """exp(x) - 1, by a series near 0.

    What the series leaves out is below 0.1**5 / 720 of it, less than a rounding; beyond, the difference is
    off by up to two roundings of 1, which are twenty of the result.
    """
    series = x * (1 + x * (0.5 + x * (0.16666667 + x * (0.041666668 + x * 0.008333334))))
    return tl.where(tl.abs(x) < 0.1, series, tl.exp(x) - 1)


@triton.jit
def _step(values, PROGRAM: tl.constexpr, STEP: tl.constexpr):
    """A step of a program, of the values of the steps before."""
    NAME: tl.constexpr = _word(PROGRAM, STEP, 0)
    if NAME == "number":
        y = tl.full(values[0].shape, _number(PROGRAM, STEP), tl.float32)
    else:
        a = values[_operand(PROGRAM, STEP, 1)]
        b = values[_operand(PROGRAM, STEP, 2)]
        if NAME == "same":
            y = a
        elif NAME == "add":
            y = a + b
        elif NAME == "mul":
            y = a * b
        elif NAME == "where":
            y = tl.where(a, b, values[_operand(PROGRAM, STEP, 3)])
        elif NAME == "gt":
            y = a > b
        elif NAME == "ge":
            y = a >= b
        elif NAME == "lt":
            y = a < b
        elif NAME == "le":
            y = a <= b
        elif NAME == "eq":
            y = a == b
        elif NAME == "ne":
            y = a != b
        elif NAME == "both":
            y = a & b
        elif NAME == "either":
            y = a | b
        elif NAME == "opposite":
            y = ~a
        elif NAME == "reciprocal":
            y = 1 / a
        elif NAME == "sqrt":
            y = tl.sqrt(a)
        elif NAME == "rsqrt":
            y = tl.rsqrt(a)
        elif NAME == "exp":
            y = tl.exp(a)
        elif NAME == "expm1":
            y = _expm1(a)
        elif NAME == "log":
            y = tl.log(a)
        elif NAME == "log1p":
            y = _log1p(a)
        elif NAME == "sin":
            y = tl.sin(a)
        elif NAME == "cos":
            y = tl.cos(a)
        elif NAME == "erf":
            y = tl.erf(a)
        elif NAME == "sigmoid":
            y = tl.sigmoid(a)
        elif NAME == "tanh":
            y = _accurate_tanh(a)
        elif NAME == "abs":
            y = tl.abs(a)
        else:
            tl.static_assert(NAME == "sign")
            y = tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, 0.0))
    return y


@triton.jit
def _run(values, PROGRAM: tl.constexpr):
    """The values of a program, of the variables and of all steps, the results last."""
    for STEP in tl.static_range(_steps(PROGRAM)):
        values = values + (_step(values, PROGRAM, STEP),)
    return values


@triton.jit
def cut_off(gradient, x, NAME: tl.constexpr):
    """A gradient in front of the activation, 0 where a relu lets none through: 0 times infinity is none."""
    if NAME == "relu" or NAME == "relu_squared":
        gradient = tl.where(x <= 0, 0.0, gradient)
    return gradient


@triton.jit
def activate(gate, up, ACTIVATION: tl.constexpr, FAST: tl.constexpr):
    """The activation of the gate by its name, or the hidden value by its program."""
    if is_name(ACTIVATION):
        y = activation(gate, ACTIVATION, FAST)
    else:
        scores = (gate,) if up is None else (gate, up)
        values = _run(scores, _program(ACTIVATION, 0))
        y = values[len(values) - 1]
    return y


@triton.jit
def pull_back(gradient, gate, up, activated, ACTIVATION: tl.constexpr, FAST: tl.constexpr):
    """The gradients of gate and up by that of the hidden value; ungated, the latter is of no use.

    ``activated`` is what ``activate`` gave.
    """
    if is_name(ACTIVATION):
        d_gate = slope(gate, ACTIVATION, FAST) * gradient
        d_up = d_gate
        if up is not None:
            d_gate *= up
            d_up = activated * gradient
        d_gate = cut_off(d_gate, gate, ACTIVATION)
    else:
        scores = (gate, gradient) if up is None else (gate, up, gradient)
        values = _run(scores, _program(ACTIVATION, 1))
        d_up = values[len(values) - 1]
        d_gate = d_up if up is None else values[len(values) - 2]
    return d_gate, d_up
