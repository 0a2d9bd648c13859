"""Kernels of the C target: C99, integers only, activations as [height][width][channels]."""

# The type and the functions that others use; each kernel follows in `KERNELS`.
_LAYER = """\
/* Negative numbers must shift to the right arithmetically, as with gcc, clang, Arm's and IAR's. */
typedef char shifts_are_arithmetic[(-3 >> 1) == -2 ? 1 : -1];

typedef struct {
    int32_t height, width, channels; /* of the input */
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width, stride_y, stride_x, top, left;
    int32_t groups, zero_in, zero_out, low, high;
} layer;
"""

_REQUANTISE = """\
/* sum * multiplier / 2^shift, rounded to nearest, halves up; then zero point and clamp. */
static int8_t requantise(int64_t product, int32_t shift, int32_t zero, int32_t low, int32_t high)
{
    const int64_t value = ((product + ((int64_t)1 << (shift - 1))) >> shift) + zero;
    return (int8_t)(value < low ? low : value > high ? high : value);
}
"""

_CONVOLVE = """\
static int32_t dot(const int8_t *restrict left, const int8_t *restrict right, int32_t size)
{
    int32_t sum = 0;
    for (int32_t i = 0; i < size; i++) {
        sum += left[i] * right[i];
    }
    return sum;
}

/* Copy the input under one window, `count` channels from `first`; padding is the zero point. */
static void gather(const layer *l, const int8_t *input, int32_t y, int32_t x, int32_t first,
                   int32_t count, int8_t *patch)
{
    for (int32_t i = y; i < y + l->kernel_height; i++) {
        for (int32_t j = x; j < x + l->kernel_width; j++, patch += count) {
            if (i < 0 || i >= l->height || j < 0 || j >= l->width) {
                memset(patch, l->zero_in, (size_t)count);
            } else {
                memcpy(patch, input + (i * l->width + j) * l->channels + first, (size_t)count);
            }
        }
    }
}

/* Without `patch`, the input under a window lies in one piece. */
static void convolve(const layer *l, const int8_t *weights, const int32_t *bias,
                     const int32_t *multipliers, const uint8_t *shifts, const int8_t *input,
                     int8_t *output, int8_t *patch)
{
    const int32_t count = l->channels / l->groups, filters = l->out_channels / l->groups;
    const int32_t size = l->kernel_height * l->kernel_width * count;
    for (int32_t i = 0; i < l->out_height * l->out_width; i++) {
        const int32_t y = i / l->out_width * l->stride_y - l->top;
        const int32_t x = i % l->out_width * l->stride_x - l->left;
        for (int32_t o = 0; o < l->out_channels; o++) {
            if (patch != NULL && o % filters == 0) {
                gather(l, input, y, x, o / filters * count, count, patch);
            }
            const int8_t *const taps =
                patch != NULL ? patch : input + (y * l->width + x) * l->channels;
            const int64_t sum = bias[o] + dot(taps, weights + o * size, size);
            *output++ = requantise(sum * multipliers[o], shifts[o], l->zero_out, l->low, l->high);
        }
    }
}
"""

_POOL_ROWS = """\
/* The part of a window that lies in the input: first and end, along one axis. */
static int32_t first_of(int32_t start)
{
    return start < 0 ? 0 : start;
}

static int32_t end_of(int32_t start, int32_t kernel, int32_t size)
{
    return start + kernel > size ? size : start + kernel;
}
"""

_MAX_POOL = """\
static void max_pool(const layer *l, const int8_t *input, int8_t *output)
{
    for (int32_t i = 0; i < l->out_height * l->out_width; i++, output += l->channels) {
        const int32_t y = i / l->out_width * l->stride_y - l->top;
        const int32_t x = i % l->out_width * l->stride_x - l->left;
        memset(output, -128, (size_t)l->channels);
        for (int32_t j = first_of(y); j < end_of(y, l->kernel_height, l->height); j++) {
            for (int32_t k = first_of(x); k < end_of(x, l->kernel_width, l->width); k++) {
                const int8_t *const taps = input + (j * l->width + k) * l->channels;
                for (int32_t c = 0; c < l->channels; c++) {
                    output[c] = taps[c] > output[c] ? taps[c] : output[c];
                }
            }
        }
    }
}
"""

_AVERAGE_POOL = """\
static void average_pool(const layer *l, int32_t multiplier, int32_t shift, const int8_t *input,
                         int8_t *output)
{
    for (int32_t i = 0; i < l->out_height * l->out_width * l->channels; i++) {
        const int32_t y = i / l->channels / l->out_width * l->stride_y - l->top;
        const int32_t x = i / l->channels % l->out_width * l->stride_x - l->left;
        int32_t sum = 0;
        for (int32_t j = first_of(y); j < end_of(y, l->kernel_height, l->height); j++) {
            for (int32_t k = first_of(x); k < end_of(x, l->kernel_width, l->width); k++) {
                sum += input[(j * l->width + k) * l->channels + i % l->channels] - l->zero_in;
            }
        }
        output[i] =
            requantise((int64_t)sum * multiplier, shift, l->zero_out, l->low, l->high);
    }
}
"""

_ADD = """\
typedef struct {
    int32_t size, zero_left, left, zero_right, right, shift, zero_out, low, high;
} addition;

static void add(const addition *a, const int8_t *left, const int8_t *right, int8_t *output)
{
    for (int32_t i = 0; i < a->size; i++) {
        const int64_t product = (int64_t)(left[i] - a->zero_left) * a->left
                                + (int64_t)(right[i] - a->zero_right) * a->right;
        output[i] = requantise(product, a->shift, a->zero_out, a->low, a->high);
    }
}
"""

_PAD_CHANNELS = """\
static void pad_channels(const layer *l, const int8_t *input, int8_t *output)
{
    for (int32_t i = 0; i < l->height * l->width; i++, input += l->channels) {
        memcpy(output, input, (size_t)l->channels);
        memset(output + l->channels, l->zero_out, (size_t)(l->out_channels - l->channels));
        output += l->out_channels;
    }
}
"""

_LOOK_UP = """\
/* From [channels][height][width] to [height][width][channels]. */
static void look_up(const int8_t *table, const uint8_t *pixels, int8_t *output)
{
    for (int32_t c = 0; c < KD_CHANNELS; c++, table += 256) {
        for (int32_t i = 0; i < KD_HEIGHT * KD_WIDTH; i++) {
            output[i * KD_CHANNELS + c] = table[*pixels++];
        }
    }
}
"""

_KERNELS: dict[str, tuple[str, ...]] = {
    "PixelTable": ("look_up", _LOOK_UP),
    "Convolution": ("convolve", _LAYER, _REQUANTISE, _CONVOLVE),
    "MaxPool": ("max_pool", _LAYER, _POOL_ROWS, _MAX_POOL),
    "AveragePool": ("average_pool", _LAYER, _REQUANTISE, _POOL_ROWS, _AVERAGE_POOL),
    "Addition": ("add", _LAYER, _REQUANTISE, _ADD),
    "ChannelPadding": ("pad_channels", _LAYER, _PAD_CHANNELS),
}
"""The C function of each class of layers, and the texts that it needs."""

FUNCTIONS = {name: function for name, (function, *_) in _KERNELS.items()}


def kernels_of(names: set[str]) -> str:
    """The C text of the kernels that these classes of layers need, what they call before them."""
    texts = [text for name, (_, *needed) in _KERNELS.items() if name in names for text in needed]
    return "\n".join(dict.fromkeys(texts))
