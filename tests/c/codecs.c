/*
 * codecs.c - properties of each format, for all elements: every number of 16 bits is loaded exactly, every store rounds
 * to nearest on both sides of every boundary, split and master formats lose nothing, and numbers that the program has
 * written since are used; those of one byte round to the nearest of their levels, keep what is positive above zero and
 * store the same bytes again.  For all instruction sets, whole blocks and tails.
 *
 *   codecs         check all of that
 *   codecs time    measure steps of RMSprop with these formats and with float32
 */
#include <time.h>

#include "check.h"
#include "proptim_coefs.h"

/* Numbers of 16 bits, by their definition */

struct sixteen {
    int format, fraction, bias;
    uint16_t infinity, quiet;
};

static const struct sixteen sixteens[] = {
    { PROPTIM_BF16, 7, 127, 0x7f80, 0x40 },
    { PROPTIM_F16, 10, 15, 0x7c00, 0x200 },
};

static double value_of(const struct sixteen *s, uint16_t half)
{
    const int size = half & 0x7fff, exponent = size >> s->fraction, rest = size & (s->quiet * 2 - 1);
    const double value = size > s->infinity    ? NAN
                         : size == s->infinity ? INFINITY
                         : exponent            ? ldexp(rest + s->quiet * 2, exponent - s->bias - s->fraction)
                                               : ldexp(rest, 1 - s->bias - s->fraction);
    return half & 0x8000 ? -value : value;
}

/* The number nearest to x, which is not NaN; of two equally near ones the even one.  2^(bias + 1) means infinity. */
static uint16_t nearest(const struct sixteen *s, double x)
{
    const double size = fabs(x);
    uint16_t below = 0, above = s->infinity; /* value_of(below) <= size, and size < value_of(above) or infinite */
    if (size >= ldexp(1, s->bias + 1)) return (uint16_t)(s->infinity | (signbit(x) ? 0x8000 : 0));
    while (above - below > 1) {
        const uint16_t middle = (uint16_t)((below + above) / 2);
        if (value_of(s, middle) <= size)
            below = middle;
        else
            above = middle;
    }
    const double upper = above == s->infinity ? ldexp(1, s->bias + 1) : value_of(s, above);
    const double down = size - value_of(s, below), up = upper - size; /* exact, or far from a tie */
    const uint16_t half = down < up || (down == up && below % 2 == 0) ? below : above;
    return (uint16_t)(half | (signbit(x) ? 0x8000 : 0));
}

/* Load or store of a codec, on runs that begin anywhere and have any length. */
static void through(proptim_codec *codec, size_t n, void *block, size_t block_bytes, void *first, size_t first_bytes,
                    void *second, size_t second_bytes)
{
    for (size_t i = 0, run = 1; i < n; i += run, run = run * 3 % 1021) {
        if (run > n - i) run = n - i;
        void *operands[3] = { (char *)block + i * block_bytes, (char *)first + i * first_bytes,
                              second ? (char *)second + i * second_bytes : NULL };
        codec(operands, run);
    }
}

static double get(int dtype, const void *array, size_t i)
{
    return dtype == PROPTIM_F32 ? (double)((const float *)array)[i] : ((const double *)array)[i];
}

/* The sign of a number, also of a NaN, which some CPUs lose when they convert it to double. */
static int sign(int dtype, const void *array, size_t i)
{
    return dtype == PROPTIM_F32 ? !!signbit(((const float *)array)[i]) : !!signbit(((const double *)array)[i]);
}

static double next(int dtype, double x, double to)
{
    return dtype == PROPTIM_F32 ? (double)nextafterf((float)x, (float)to) : nextafter(x, to);
}

enum { ALL = 0x10000 };

/* Convert every number and back; a NaN becomes quiet and is otherwise unchanged. */
static void check_all(const proptim_isa *isa, const struct sixteen *s, int dtype)
{
    static uint16_t halves[ALL], back[ALL];
    static double block[ALL];
    const size_t itemsize = itemsize_of(dtype);
    for (int i = 0; i < ALL; i++) halves[i] = (uint16_t)i;
    through(isa->loads[s->format][dtype], ALL, block, itemsize, halves, 2, NULL, 0);
    through(isa->stores[s->format][dtype], ALL, block, itemsize, back, 2, NULL, 0);
    for (int i = 0; i < ALL; i++) {
        const double expected = value_of(s, (uint16_t)i), loaded = get(dtype, block, (size_t)i);
        const int nan = (i & 0x7fff) > s->infinity;
        CHECK(nan ? isnan(loaded) : loaded == expected && !signbit(loaded) == !signbit(expected),
              "%s %s %s: %x is loaded as %g, expected %g", isa->name, formats[s->format], dtypes[dtype], i, loaded,
              expected);
        CHECK(back[i] == (nan ? i | s->quiet : i), "%s %s %s: %x comes back as %x", isa->name, formats[s->format],
              dtypes[dtype], i, back[i]);
    }
}

/* Numbers on, halfway between, and next to all numbers of 16 bits, of both signs; then any. */
static void check_rounding(const proptim_isa *isa, const struct sixteen *s, int dtype)
{
    enum { AROUND = 12, RANDOM = 100000 };
    const size_t itemsize = itemsize_of(dtype), boundaries = AROUND * (size_t)s->infinity, n = boundaries + RANDOM;
    double *const block = malloc(n * sizeof *block);
    uint16_t *const halves = malloc(n * sizeof *halves), *const expected = malloc(n * sizeof *expected);
    uint64_t random = 3;
    CHECK(block && halves && expected, "out of memory");
    for (uint16_t h = 0; h < s->infinity; h++) {
        const double here = value_of(s, h), after = h + 1 == s->infinity ? ldexp(1, s->bias + 1) : value_of(s, h + 1);
        const double middle = here + (after - here) / 2;
        const double around[AROUND / 2] = { here,   next(dtype, here, INFINITY),   next(dtype, middle, 0),
                                            middle, next(dtype, middle, INFINITY), next(dtype, after, 0) };
        const uint16_t up = (uint16_t)(h + 1), tie = h % 2 ? up : h;
        const uint16_t rounded[AROUND / 2] = { h, h, h, tie, up, up };
        for (int i = 0; i < AROUND; i++) {
            put(dtype, block, (size_t)h * AROUND + (size_t)i, i % 2 ? -around[i / 2] : around[i / 2]);
            expected[h * AROUND + i] = (uint16_t)(rounded[i / 2] | (i % 2 ? 0x8000 : 0));
        }
    }
    for (size_t i = boundaries; i < n; i++) {
        uniform(&random);
        if (dtype == PROPTIM_F32)
            memcpy((float *)block + i, (char *)&random + 2, 4);
        else
            memcpy(block + i, &random, 8);
        if (dtype == PROPTIM_F64 && i % 2) block[i] = ldexp(uniform(&random), (int)below(&random, 300) - 150);
        const double x = get(dtype, block, i);
        expected[i] = isnan(x) ? 0 : nearest(s, x);
    }
    through(isa->stores[s->format][dtype], n, block, itemsize, halves, 2, NULL, 0);
    for (size_t i = 0; i < n; i++) {
        const double x = get(dtype, block, i);
        const int same = isnan(x) ? (halves[i] & 0x7fff) > s->infinity && halves[i] >> 15 == sign(dtype, block, i) &&
                                        (halves[i] & s->quiet)
                                  : halves[i] == expected[i];
        CHECK(same, "%s %s %s: %a is stored as %x, expected %x", isa->name, formats[s->format], dtypes[dtype], x,
              halves[i], expected[i]);
    }
    free(block);
    free(halves);
    free(expected);
}

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/*
 * The instructions of a CPU against the integers of the scalar kernels, with sign and payload of every NaN: float32 of
 * all exponents with the digits around the ties of both formats, and all numbers of 16 bits.  A loaded
 * NaN may have become quiet.
 */
static void check_instructions(const proptim_isa *isa, const struct sixteen *s)
{
    static const uint16_t lasts[] = { 0,      1,      0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000,
                                      0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xffff };
    enum { LASTS = sizeof lasts / sizeof *lasts, N = ALL * LASTS };
    static float block[N], expected[ALL];
    static uint16_t half[N], expected_half[N];
    for (int i = 0; i < N; i++) block[i] = float_of((uint32_t)(i / LASTS) << 16 | lasts[i % LASTS]);
    through(isa->stores[s->format][0], N, block, 4, half, 2, NULL, 0);
    through(proptim_isa_scalar.stores[s->format][0], N, block, 4, expected_half, 2, NULL, 0);
    for (int i = 0; i < N; i++)
        CHECK(half[i] == expected_half[i], "%s %s: %x is stored as %x, expected %x", isa->name, formats[s->format],
              (unsigned)bits_of(block[i]), half[i], expected_half[i]);
    for (int i = 0; i < ALL; i++) half[i] = (uint16_t)i;
    through(isa->loads[s->format][0], ALL, block, 4, half, 2, NULL, 0);
    through(proptim_isa_scalar.loads[s->format][0], ALL, expected, 4, half, 2, NULL, 0);
    for (int i = 0; i < ALL; i++) {
        const uint32_t quiet = isnan(expected[i]) ? 0x00400000 : 0;
        CHECK((bits_of(block[i]) | quiet) == (bits_of(expected[i]) | quiet), "%s %s: %x is loaded as %x, expected %x",
              isa->name, formats[s->format], i, (unsigned)bits_of(block[i]), (unsigned)bits_of(expected[i]));
    }
}

/*
 * Numbers of all sizes, rounded at random: upwards exactly if the random word, as a fraction, reaches the distance to
 * the number above.  Distances below the 31st binary digit, for float64 below the last of a double, are none.
 */
static void check_dither(const proptim_isa *isa, const struct sixteen *s, int dtype)
{
    enum { N = 200000 };
    static const uint32_t some[] = { 0, 1, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff };
    double *const block = malloc(N * sizeof *block), *const before = malloc(N * sizeof *before);
    uint32_t *const words = malloc(N * sizeof *words);
    uint16_t *const halves = malloc(N * sizeof *halves);
    uint64_t random = 5;
    CHECK(block && before && words && halves, "out of memory");
    for (size_t i = 0; i < N; i++) {
        const uint16_t half = (uint16_t)below(&random, s->infinity);
        const double low = value_of(s, half), kind = uniform(&random);
        const double tiny = ldexp(uniform(&random), -(int)below(&random, 40)) * value_of(s, 1);
        const double x = kind < 0.1 ? low : kind < 0.2 ? tiny : low * (1 + ldexp(uniform(&random), -s->fraction));
        words[i] = i % 2 ? some[below(&random, sizeof some / sizeof *some)] : (uint32_t)(uniform(&random) * 0x1p32);
        put(dtype, block, i, i % 3 ? x : -x);
    }
    const double special[] = { 0, -0.0, INFINITY, -INFINITY, NAN, -NAN };
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) put(dtype, block, i, special[i]);
    memcpy(before, block, N * itemsize_of(dtype));
    isa->dithers[dtype](block, words, N, s->fraction, s->bias);
    through(isa->stores[s->format][dtype], N, block, itemsize_of(dtype), halves, 2, NULL, 0);
    for (size_t i = 0; i < N; i++) {
        const double x = get(dtype, before, i), size = fabs(x), rounded = get(dtype, block, i);
        if (i < sizeof special / sizeof *special) {
            CHECK(bits_at(dtype, block, i) == bits_at(dtype, before, i), "%s: %g became %g", isa->name, x, rounded);
            continue;
        }
        uint16_t under = 0, over = s->infinity;
        while (over - under > 1) {
            const uint16_t middle = (uint16_t)((under + over) / 2);
            if (value_of(s, middle) <= size)
                under = middle;
            else
                over = middle;
        }
        const double above = over == s->infinity ? ldexp(1, s->bias + 1) : value_of(s, over);
        double part = (size - value_of(s, under)) / (above - value_of(s, under));
        if (dtype == PROPTIM_F32) part = floor(part * 0x1p31) * 0x1p-31;
        double expected = part + words[i] * 0x1p-32 >= 1 && part > 0 ? above : value_of(s, under);
        if (dtype == PROPTIM_F32 && expected == 0x1p128) expected = INFINITY;
        CHECK(rounded == (signbit(x) ? -expected : expected), "%s %s %s: %a becomes %a by %x, expected %a", isa->name,
              formats[s->format], dtypes[dtype], x, rounded, (unsigned)words[i], expected);
        const double stored = value_of(s, halves[i]); /* exactly, or infinity */
        CHECK(stored == rounded || (isinf(stored) && fabs(rounded) >= ldexp(1, s->bias + 1)),
              "%s %s %s: %a is stored as %a", isa->name, formats[s->format], dtypes[dtype], rounded, stored);
    }
    free(block);
    free(before);
    free(words);
    free(halves);
}

/* The same of float32 in a rule that computes in float64. */
static void check_dither_float32(const proptim_isa *isa)
{
    enum { N = 100000 };
    uint64_t random = 9;
    for (int i = 0; i < N; i++) {
        const float low = (float)ldexp(uniform(&random), (int)below(&random, 270) - 149),
                    high = nextafterf(low, INFINITY);
        const double part = floor(uniform(&random) * 0x1p29) * 0x1p-29, x = low + part * ((double)high - low);
        const uint32_t word = (uint32_t)(uniform(&random) * 0x1p32);
        double block = i % 2 ? x : -x;
        isa->dithers[PROPTIM_F64](&block, &word, 1, 23, 127);
        const double expected = part + word * 0x1p-32 >= 1 && part > 0 ? (double)high : (double)low;
        CHECK(fabs(block) == expected, "%s: %a becomes %a by %x, expected %a", isa->name, x, block, (unsigned)word,
              expected);
    }
}

/* Low halves around zero and around the tie. */
static const uint16_t lows[] = { 0, 1, 0x7fff, 0x8000, 0x8001, 0xffff };
enum { LOWS = sizeof lows / sizeof *lows };

/*
 * Every upper half with some low ones: a stored number is loaded unchanged, and its upper half is the number rounded to
 * nearest.  Then any two halves.
 */
static void check_split(const proptim_isa *isa)
{
    enum { N = ALL * LOWS };
    static float block[N], back[N];
    static uint16_t high[N];
    static int16_t low[N];
    for (int i = 0; i < N; i++) block[i] = float_of((uint32_t)(i / LOWS) << 16 | lows[i % LOWS]);
    through(isa->stores[PROPTIM_SPLIT][0], N, block, 4, high, 2, low, 2);
    through(isa->loads[PROPTIM_SPLIT][0], N, back, 4, high, 2, low, 2);
    for (int i = 0; i < N; i++) {
        const uint32_t bits = bits_of(block[i]);
        if (isnan(block[i])) {
            CHECK(high[i] == 0x7fc0 && low[i] == 0 && bits_of(back[i]) == 0x7fc00000, "%s: NaN %x is stored as %x, %x",
                  isa->name, (unsigned)bits, high[i], (unsigned)low[i]);
            continue;
        }
        CHECK(bits_of(back[i]) == bits, "%s: %a comes back as %a", isa->name, block[i], back[i]);
        const double x = block[i], shown = value_of(&sixteens[0], high[i]);
        const uint16_t even = isinf(x) ? high[i] : nearest(&sixteens[0], x);
        CHECK(even == high[i] || ((bits & 0xffff) == 0x8000 && fabs(shown) > fabs(x)),
              "%s: %a is shown as %a, expected the nearest", isa->name, x, shown);
    }
    for (int i = 0; i < N; i++) {
        high[i] = (uint16_t)(i / LOWS);
        low[i] = (int16_t)lows[i % LOWS];
    }
    through(isa->loads[PROPTIM_SPLIT][0], N, back, 4, high, 2, low, 2);
    for (int i = 0; i < N; i++) {
        const int size = high[i] & 0x7fff;
        const int ignored = (size == 0 && low[i] < 0) || (size == 0x7f80 && low[i] > 0);
        const uint32_t expected = (uint32_t)high[i] * 0x10000u + (uint32_t)(ignored ? 0 : (int32_t)low[i]);
        CHECK(isnan(back[i]) ? size > 0x7f80 : bits_of(back[i]) == expected, "%s: %x, %d is loaded as %a", isa->name,
              high[i], low[i], back[i]);
    }
}

/* A master is loaded as it was stored; if the half has been written since, the half is loaded instead. */
static void check_master(const proptim_isa *isa, const struct sixteen *s)
{
    enum { N = ALL * LOWS };
    static float block[N], back[N], master[N];
    static uint16_t half[N], single[N];
    const int format = s->format == PROPTIM_BF16 ? PROPTIM_BF16_MASTER : PROPTIM_F16_MASTER;
    for (int i = 0; i < N; i++) block[i] = float_of((uint32_t)(i / LOWS) << 16 | lows[i % LOWS]);
    through(isa->stores[format][0], N, block, 4, half, 2, master, 4);
    through(isa->stores[s->format][0], N, block, 4, single, 2, NULL, 0);
    through(isa->loads[format][0], N, back, 4, half, 2, master, 4);
    CHECK(!memcmp(half, single, sizeof half), "%s %s: rounded otherwise than without", isa->name, formats[format]);
    CHECK(difference(0, master, block, N) == N, "%s %s: another master", isa->name, formats[format]);
    CHECK(difference(0, back, block, N) == N, "%s %s: another number", isa->name, formats[format]);

    for (int i = 0; i < N; i++) half[i] = (uint16_t)(i * 7919); /* odd: every pattern */
    through(isa->loads[format][0], N, back, 4, half, 2, master, 4);
    for (int i = 0; i < N; i++) {
        const double written = value_of(s, half[i]);
        const float expected = half[i] == single[i] ? master[i] : (float)written;
        CHECK(bits_at(0, back, (size_t)i) == bits_at(0, &expected, 0), "%s %s: %x over %a is loaded as %a, expected %a",
              isa->name, formats[format], half[i], master[i], back[i], expected);
    }
}

/* float32 arrays for float64 rules, and the other way round, are conversions of C. */
static void check_other_floats(const proptim_isa *isa)
{
    enum { N = 5003 };
    float narrow[N], narrowed[N];
    double wide[N], widened[N];
    uint64_t random = 5;
    fill(PROPTIM_F64, wide, N, PROPTIM_PARAMS, WILD, &random);
    fill(PROPTIM_F32, narrow, N, PROPTIM_PARAMS, WILD, &random);
    through(isa->loads[PROPTIM_FLOAT32][PROPTIM_F64], N, widened, 8, narrow, 4, NULL, 0);
    through(isa->stores[PROPTIM_FLOAT32][PROPTIM_F64], N, wide, 8, narrowed, 4, NULL, 0);
    for (size_t i = 0; i < N; i++) {
        const double up = narrow[i];
        const float down = (float)wide[i];
        CHECK(bits_at(PROPTIM_F64, widened, i) == bits_at(PROPTIM_F64, &up, 0), "%s: %a", isa->name, narrow[i]);
        CHECK(bits_at(PROPTIM_F32, narrowed, i) == bits_at(PROPTIM_F32, &down, 0), "%s: %a", isa->name, wide[i]);
    }
    through(isa->loads[PROPTIM_FLOAT64][PROPTIM_F32], N, narrowed, 4, wide, 8, NULL, 0);
    through(isa->stores[PROPTIM_FLOAT64][PROPTIM_F32], N, narrow, 4, widened, 8, NULL, 0);
    for (size_t i = 0; i < N; i++) {
        const double up = narrow[i];
        const float down = (float)wide[i];
        CHECK(bits_at(PROPTIM_F64, widened, i) == bits_at(PROPTIM_F64, &up, 0), "%s: %a", isa->name, narrow[i]);
        CHECK(bits_at(PROPTIM_F32, narrowed, i) == bits_at(PROPTIM_F32, &down, 0), "%s: %a", isa->name, wide[i]);
    }
}

/* Step sizes and last signs
 * -------------------------------------------------------------------------------------------- */

/* Whether there is a last sign: `sign` is neither NaN nor zero. */
static int is_sign(double sign) { return sign < 0 || sign > 0; }

/*
 * Every step size with every sign.  Legal sizes are 2^-50 .. 2^37 (rules/rprop.h): loaded they are below 2^38 with the
 * sign, or at least 2^40 without one, and they come back as they were, with the sign as -1, 0 or 1.
 */
static void check_sizes_and_signs(const proptim_isa *isa, int dtype)
{
    static const double sizes[] = { 0x1p-50, 0x1.fffffep-50, 0x1p-20, 1e-6, 0.1, 1, 50, 0x1p20, 0x1.fffffep36, 0x1p37 };
    static const double signs[] = { -INFINITY, -2.5, -1, -1e-40, -0.0, 0, 1e-40, 1, 2.5, INFINITY, NAN, -NAN };
    enum { SIZES = sizeof sizes / sizeof *sizes, SIGNS = sizeof signs / sizeof *signs, N = SIZES * SIGNS };
    double word[N], size[N], sign[N], size_back[N], sign_back[N];
    const size_t itemsize = itemsize_of(dtype);
    for (int i = 0; i < N; i++) {
        put(dtype, size, (size_t)i, sizes[i / SIGNS]);
        put(dtype, sign, (size_t)i, signs[i % SIGNS]);
    }
    through(isa->loads[PROPTIM_STEPS][dtype], N, word, itemsize, size, itemsize, sign, itemsize);
    through(isa->stores[PROPTIM_STEPS][dtype], N, word, itemsize, size_back, itemsize, sign_back, itemsize);
    for (size_t i = 0; i < N; i++) {
        const double d = get(dtype, size, i), last = get(dtype, sign, i);
        const double expected = !is_sign(last) ? ldexp(d, 90) : last < 0 ? -d : d;
        const double shown = !is_sign(last) ? 0 : last < 0 ? -1 : 1;
        CHECK(get(dtype, word, i) == expected, "%s %s: size %a with sign %g is loaded as %a, expected %a", isa->name,
              dtypes[dtype], d, last, get(dtype, word, i), expected);
        CHECK(bits_at(dtype, size_back, i) == bits_at(dtype, size, i), "%s %s: size %a comes back as %a", isa->name,
              dtypes[dtype], d, get(dtype, size_back, i));
        CHECK(get(dtype, sign_back, i) == shown && !signbit(get(dtype, sign_back, i)) == !(shown < 0),
              "%s %s: sign %g comes back as %g, expected %g", isa->name, dtypes[dtype], last, get(dtype, sign_back, i),
              shown);
    }
}

/* Words on both sides of the bound 2^38, and the sizes at both ends times 2^90. */
static void check_words(const proptim_isa *isa, int dtype)
{
    const double bound = 0x1p38, below = next(dtype, bound, 0), above = next(dtype, bound, INFINITY);
    const struct {
        double word, size, sign;
    } all[] = {
        { 0x1p-50, 0x1p-50, 1 },
        { -0x1p-50, 0x1p-50, -1 },
        { 0x1p37, 0x1p37, 1 },
        { -0x1p37, 0x1p37, -1 },
        { below, below, 1 },
        { -below, below, -1 },
        { bound, 0x1p-52, 0 },
        { -bound, 0x1p-52, 0 },
        { above, ldexp(above, -90), 0 },
        { 0x1p40, 0x1p-50, 0 },
        { 0x1p90, 1, 0 },
        { next(dtype, 0x1p90, 0), ldexp(next(dtype, 0x1p90, 0), -90), 0 },
        { next(dtype, 0x1p90, INFINITY), ldexp(next(dtype, 0x1p90, INFINITY), -90), 0 },
        { 0x1p127, 0x1p37, 0 },
        { 0, 0, 1 },
        { -0.0, 0, -1 },
        { INFINITY, INFINITY, 0 },
        { -INFINITY, INFINITY, 0 },
        { NAN, NAN, 0 },
    };
    enum { N = sizeof all / sizeof *all };
    double word[N], size[N], sign[N];
    const size_t itemsize = itemsize_of(dtype);
    for (size_t i = 0; i < N; i++) put(dtype, word, i, all[i].word);
    through(isa->stores[PROPTIM_STEPS][dtype], N, word, itemsize, size, itemsize, sign, itemsize);
    for (size_t i = 0; i < N; i++) {
        double expected = 0;
        put(dtype, &expected, 0, all[i].size);
        CHECK(bits_at(dtype, size, i) == bits_at(dtype, &expected, 0),
              "%s %s: word %a is stored as size %a, expected %a", isa->name, dtypes[dtype], all[i].word,
              get(dtype, size, i), all[i].size);
        CHECK(get(dtype, sign, i) == all[i].sign && !signbit(get(dtype, sign, i)) == !(all[i].sign < 0),
              "%s %s: word %a is stored with sign %g, expected %g", isa->name, dtypes[dtype], all[i].word,
              get(dtype, sign, i), all[i].sign);
    }
}

/*
 * Every rule by the kernels of fused.inc against the blocks of plan.c, by the scalar kernels: the bits must be the same
 * with optional arrays present and absent, any coefficients, any stages that a kernel takes, and every array in each of
 * the formats that it supports, or parameter, gradient and state in one of the mixes for which there are loops.
 */
static void check_fused(const proptim_isa *isa)
{
    enum { N = 64, DRAWS = 32 };
    enum { KNOWN = 3, MIXES = 5 };
    static const uint8_t known[KNOWN] = { PROPTIM_PLAIN, PROPTIM_BF16, PROPTIM_SPLIT };
    static const uint8_t mixes[MIXES][3] = { { PROPTIM_PLAIN, PROPTIM_PLAIN, PROPTIM_PLAIN },
                                             { PROPTIM_SPLIT, PROPTIM_BF16, PROPTIM_PLAIN },
                                             { PROPTIM_SPLIT, PROPTIM_BF16, PROPTIM_BF16 },
                                             { PROPTIM_BF16, PROPTIM_BF16, PROPTIM_BF16 },
                                             { PROPTIM_PLAIN, PROPTIM_PLAIN, PROPTIM_BF16 } };
    static const double coef_of[] = { [PROPTIM_decay] = 0.99, [PROPTIM_scale] = -0.37, [PROPTIM_clip] = 0.5,
                                      [PROPTIM_l2] = 0.01,    [PROPTIM_zero] = 1,      [PROPTIM_flush] = 1,
                                      [PROPTIM_average] = 0 };
    static double given[PROPTIM_MAX_ARRAYS][2][N], expected[PROPTIM_MAX_ARRAYS][2][N], block[N];
    uint64_t random = 1;
    for (int rule = 0; rule < PROPTIM_RULES && isa->fused[rule]; rule++) {
        const struct text *text = &texts[rule];
        for (unsigned turn = 0; turn < 4 * (KNOWN + MIXES) * DRAWS; turn++) { /* 4: two optional arrays at most */
            const unsigned there = present(text, turn), way = turn / 4 % (KNOWN + MIXES);
            const unsigned draw = turn / (4 * (KNOWN + MIXES));
            proptim_segment segment = { .size = N, .dtype = PROPTIM_F32, .dense = PROPTIM_DENSE };
            proptim_plane_array arrays[PROPTIM_MAX_ARRAYS] = { { .format = PROPTIM_PLAIN } };
            proptim_row row;
            double coefs[PROPTIM_MAX_COEFS];
            unsigned on = 0;
            char word[32];
            draw_coefs(text, &random, coefs);
            proptim_row_init(&row, (proptim_rule)rule, coefs);
            for (int k = 0; k < PROPTIM_STAGES; k++) {
                if (k == PROPTIM_average || !(draw >> (k % 5) & 1))
                    continue; /* every set of five; the last with the first */
                row.stages[k] = coef_of[k];
                on |= 1u << k;
            }
            for (int j = 0; word_at(text->arrays, j, word); j++) {
                if (!(there >> j & 1)) continue;
                arrays[j].format =
                    way < KNOWN ? known[(way + (unsigned)j) % KNOWN] : mixes[way - KNOWN][j < PROPTIM_STATE ? j : 2];
                fill(PROPTIM_F32, block, N, role_of(word), TAME, &random);
                void *operands[] = { block, given[j][0], given[j][1] };
                if (arrays[j].format == PROPTIM_PLAIN)
                    memcpy(given[j][0], block, N * sizeof(float));
                else
                    proptim_isa_scalar.stores[arrays[j].format][PROPTIM_F32](operands, N);
                segment.arrays[j] = arrays[j];
                for (int p = 0; p < 2 && plane_bytes(PROPTIM_F32, arrays[j].format, p); p++) {
                    arrays[j].planes[p] = given[j][p];
                    segment.arrays[j].planes[p] = expected[j][p];
                }
            }
            memcpy(expected, given, sizeof expected);
            proptim_step(&proptim_isa_scalar, (proptim_rule)rule, &segment, 1, &row, 1, NULL);
            CHECK(isa->fused[rule](arrays, &row, on, 0, N) == N, "%s %s", isa->name, text->name);
            for (int j = 0; text->marks[j]; j++)
                for (int p = 0; p < 2 && arrays[j].planes[p]; p++)
                    for (size_t i = 0; i < N; i++)
                        CHECK(plane_bits_at(PROPTIM_F32, arrays[j].format, p, given[j][p], i) ==
                                  plane_bits_at(PROPTIM_F32, arrays[j].format, p, expected[j][p], i),
                              "%s %s, turn %u, stages %x, %s plane %d of array %d at %zu", isa->name, text->name, turn,
                              on, formats[arrays[j].format], p, j, i);
        }
    }
}

/* Time ------------------------------------------------------------------------------------------------------------- */

enum { WAYS = 7 };

static const struct way {
    const char *name;
    uint8_t formats[3]; /* of parameter, gradient and state */
    int bytes;          /* that a step reads and writes, for a weight */
} ways[WAYS] = {
    { "float32", { PROPTIM_PLAIN, PROPTIM_PLAIN, PROPTIM_PLAIN }, 20 },
    { "split parameter, bfloat16 gradient", { PROPTIM_SPLIT, PROPTIM_BF16, PROPTIM_PLAIN }, 18 },
    { "the same, bfloat16 state", { PROPTIM_SPLIT, PROPTIM_BF16, PROPTIM_BF16 }, 14 },
    { "all bfloat16", { PROPTIM_BF16, PROPTIM_BF16, PROPTIM_BF16 }, 10 },
    { "binary16 and master, binary16 gradient", { PROPTIM_F16_MASTER, PROPTIM_F16, PROPTIM_PLAIN }, 22 },
    { "all binary16", { PROPTIM_F16, PROPTIM_F16, PROPTIM_F16 }, 10 },
    { "float32, state in one byte", { PROPTIM_PLAIN, PROPTIM_PLAIN, PROPTIM_SQUARES8 }, 14 },
};

static double now(void)
{
    struct timespec t;
    CHECK(timespec_get(&t, TIME_UTC), "no clock");
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static proptim_segment segment_of(const struct way *way, size_t n)
{
    proptim_segment s = { .size = n, .dtype = PROPTIM_F32, .dense = PROPTIM_DENSE };
    for (int j = 0; j < 3; j++) {
        void *operands[3] = { malloc(n * 4) };
        for (size_t i = 0; i < n; i++) ((float *)operands[0])[i] = (float)(1 + i % 1000) * (j < 2 ? 1e-3f : 1e-6f);
        for (int p = 0; p < 2 && plane_bytes(0, way->formats[j], p); p++)
            s.arrays[j].planes[p] = operands[1 + p] =
                (char *)malloc(n * plane_bytes(0, way->formats[j], p) + 8192) + 832 * (j + 4 * p + 1);
        s.arrays[j].format = way->formats[j];
        if (way->formats[j] == PROPTIM_PLAIN)
            memcpy(operands[1], operands[0], n * 4);
        else
            proptim_isa_or_best(NULL)->stores[way->formats[j]][0](operands, n);
        free(operands[0]);
    }
    return s;
}

static void time_steps(void)
{
    static const proptim_rmsprop_coefs coefs = {
        .lr = 1e-6, .alpha = 0.9, .one_minus_alpha = 0.1, .correction = 1, .eps = 1e-8
    };
    static const size_t sizes[] = { 100000, 10000000, 50000000 };
    proptim_row row;
    proptim_row_init(&row, PROPTIM_rmsprop, &coefs.lr);
    for (size_t z = 0; z < sizeof sizes / sizeof *sizes; z++) {
        const size_t n = sizes[z], calls = 1 + 2000000 / n;
        proptim_segment segments[WAYS];
        for (int w = 0; w < WAYS; w++) segments[w] = segment_of(&ways[w], n);
        for (int threads = 1; threads <= 2; threads++) {
            double best[WAYS];
            for (int w = 0; w < WAYS; w++) best[w] = 1;
            for (int turn = 0; turn < 15; turn++)
                for (int w = 0; w < WAYS; w++) {
                    const double begin = now();
                    for (size_t k = 0; k < calls; k++)
                        (void)proptim_step(NULL, PROPTIM_rmsprop, &segments[w], 1, &row, threads,
                                           proptim_get_api()->pool);
                    const double took = (now() - begin) / (double)(calls * n);
                    if (took < best[w]) best[w] = took;
                }
            for (int w = 0; w < WAYS; w++)
                printf("%8zu weights, %d threads: %.3f ns a weight, %.2f of float32: %s, %d bytes\n", n, threads,
                       best[w] * 1e9, best[w] / best[0], ways[w].name, ways[w].bytes);
        }
        /* The next size has new arrays; these are freed when the program ends. */
    }
}

/* The formats of one byte */

enum { BYTES = 5 * PROPTIM_QUANTA + 77, SCALES = 6 };

/* Averages of many sizes, with zeros, numbers that are not finite, and blocks that are very small or all zeros. */
static void check_blocks(const proptim_isa *isa, int format)
{
    const int levels = format == PROPTIM_INT8 ? 127 : 254;
    float x[BYTES], loaded[BYTES], scale[SCALES], again[SCALES];
    unsigned char code[BYTES], back[BYTES];
    uint64_t random = 5;
    for (size_t i = 0; i < BYTES; i++) {
        const double size = ldexp(uniform(&random), -(int)below(&random, 30)), sign = uniform(&random) - 0.5;
        x[i] = (float)(format == PROPTIM_INT8 && sign < 0 ? -size : size);
        if (i / PROPTIM_QUANTA == 1) x[i] *= 0x1p-120f;
        if (i / PROPTIM_QUANTA == 2 || i % 50 == 0) x[i] = 0;
        if (i % 64 == 1) x[i] = i % 128 == 1 ? NAN : format == PROPTIM_INT8 ? -INFINITY : INFINITY;
    }
    void *const stored[] = { x, code, scale }, *const shown[] = { loaded, code, scale };
    void *const again_stored[] = { loaded, back, again };
    isa->stores[format][PROPTIM_F32](stored, BYTES);
    isa->loads[format][PROPTIM_F32](shown, BYTES);
    for (size_t i = 0; i < BYTES; i++) {
        const double most = scale[i / PROPTIM_QUANTA], size = fabs(loaded[i]);
        if (!isfinite(x[i])) {
            CHECK(isnan(loaded[i]), "%s %s: %g is loaded as %g", isa->name, formats[format], x[i], loaded[i]);
            continue;
        }
        CHECK(size <= most && (loaded[i] == 0 || signbit(loaded[i]) == signbit(x[i])), "%s %s: %g is loaded as %g",
              isa->name, formats[format], x[i], loaded[i]);
        CHECK(fabs(x[i]) < most || size == most, "%s %s: the largest, %g, is loaded as %g", isa->name, formats[format],
              x[i], loaded[i]);
        /* No other level is nearer, up to a rounding of float32; the lowest of the squares takes all that are below. */
        const double level = floor(sqrt(size / most) * levels + 0.5), miss = fabs(fabs(x[i]) - size);
        for (int step = -1; step <= 1; step += 2) {
            const double other = (level + step) * (level + step) / ((double)levels * levels) * most;
            const int raised = format == PROPTIM_SQUARES8 && level == 1 && step == -1 && x[i] > 0;
            if (level + step >= 0 && level + step <= levels && !raised)
                CHECK(miss <= fabs(fabs(x[i]) - other) + most * 0x1p-22, "%s %s: %g of %g is stored as level %g",
                      isa->name, formats[format], x[i], most, level);
        }
        if (format == PROPTIM_SQUARES8)
            CHECK((loaded[i] > 0) == (x[i] > 0), "%s: %g is loaded as %g", isa->name, x[i], loaded[i]);
    }
    isa->stores[format][PROPTIM_F32](again_stored, BYTES);
    CHECK(!memcmp(code, back, sizeof code) && !memcmp(scale, again, sizeof scale), "%s %s: other bytes the second time",
          isa->name, formats[format]);
}

/* Numbers half of the way between the squares of two levels, and next to it: a scale of levels^2 leaves them as they
 * are. */
static void check_middles(const proptim_isa *isa, int format)
{
    const int levels = format == PROPTIM_INT8 ? 127 : 254;
    float x[PROPTIM_QUANTA], scale[1];
    unsigned char code[PROPTIM_QUANTA];
    void *const stored[] = { x, code, scale };
    for (int below = 0; below < levels; below++) {
        const float middle = (float)below * (float)(below + 1) + 0.5f;
        x[0] = (float)(levels * levels);
        for (int i = 1; i < PROPTIM_QUANTA; i++)
            x[i] = i % 3 == 0 ? middle : nextafterf(middle, i % 3 == 1 ? 0 : INFINITY);
        isa->stores[format][PROPTIM_F32](stored, PROPTIM_QUANTA);
        for (int i = 1; i < PROPTIM_QUANTA; i++) {
            const int expected = below + (i % 3 == 2 || (format == PROPTIM_SQUARES8 && below == 0));
            CHECK(code[i] == expected, "%s %s: %a is stored as %d, expected %d", isa->name, formats[format], x[i],
                  code[i], expected);
        }
    }
}

/*
 * The same rounded at random: upwards exactly if the upper 24 bits of the word, as a fraction, are below the distance
 * from the level below; squares above zero never to zero.  What is rounded is stored exactly.
 */
static void check_dither_levels(const proptim_isa *isa, int format)
{
    static const uint32_t some[] = { 0, 0xff, 0x100, 0x7fffffff, 0x80000000, 0xffffffff };
    const int levels = format == PROPTIM_INT8 ? 127 : 254;
    const float inverse = (float)(1.0 / (levels * levels));
    float x[BYTES], before[BYTES], back[BYTES], scale[SCALES];
    unsigned char code[BYTES];
    uint32_t words[BYTES];
    uint64_t random = 6;
    for (size_t i = 0; i < BYTES; i++) {
        const double size = ldexp(uniform(&random), -(int)below(&random, 30)), sign = uniform(&random) - 0.5;
        x[i] = (float)(format == PROPTIM_INT8 && sign < 0 ? -size : size);
        if (i / PROPTIM_QUANTA == 1) x[i] *= 0x1p-120f;
        if (i / PROPTIM_QUANTA == 2 || i % 50 == 0) x[i] = 0;
        if (i % 64 == 1) x[i] = i % 128 == 1 ? NAN : format == PROPTIM_INT8 ? -INFINITY : INFINITY;
        words[i] = i % 2 ? some[below(&random, sizeof some / sizeof *some)] : (uint32_t)(uniform(&random) * 0x1p32);
    }
    memcpy(before, x, sizeof x);
    void *const stored[] = { x, code, scale }, *const loaded[] = { back, code, scale };
    isa->stores[format][PROPTIM_F32](stored, BYTES); /* for the scales */
    isa->dither_levels(x, words, BYTES, levels);
    for (size_t i = 0; i < BYTES; i++) {
        const float size = fabsf(before[i]), most = scale[i / PROPTIM_QUANTA];
        if (!isfinite(size)) {
            CHECK(bits_of(x[i]) == bits_of(before[i]), "%s: %g became %g", isa->name, before[i], x[i]);
            continue;
        }
        float low = 0, high = 0;
        int level = 0;
        for (; level <= levels && (high = (float)(level * level) * inverse * most) <= size; level++) low = high;
        const float part = (float)(words[i] >> 8) * 0x1p-24f;
        const int up = size - low > part * (high - low) || (levels == 254 && level == 1 && size > 0);
        const float expected = copysignf(up ? high : low, before[i]);
        CHECK(bits_of(x[i]) == bits_of(expected), "%s %s: %a of %a became %a by %x, expected %a", isa->name,
              formats[format], before[i], most, x[i], (unsigned)words[i], expected);
    }
    isa->stores[format][PROPTIM_F32](stored, BYTES);
    isa->loads[format][PROPTIM_F32](loaded, BYTES);
    for (size_t i = 0; i < BYTES; i++)
        CHECK(isfinite(x[i]) ? back[i] == x[i] : isnan(back[i]), "%s %s: %a is stored as %a", isa->name,
              formats[format], x[i], back[i]);
}

/* Every size of every grid, with every sign: stored again, and after a multiplication with a power of the root. */
static void check_grids(const proptim_isa *isa)
{
    static const double largest[] = { 50, 1, 0x1p-50, 0x1p37, 0.3 };
    for (int n = 1; n <= 4; n++)
        for (size_t l = 0; l < sizeof largest / sizeof *largest; l++)
            for (int by = -2 * n; by <= 1; by++) {
                float grid[2], word[255];
                unsigned char code[255], back[255];
                CHECK(proptim_rprop_steps8(grid, largest[l] * exp2(-7.0 / n), largest[l], n) == 177, "first of %d", n);
                CHECK(proptim_rprop_steps8(grid, 2 * largest[l], largest[l], n) == 170, "above the grid of %d", n);
                CHECK(proptim_rprop_steps8(grid, largest[l] * 0x1p-85, largest[l], n) == 254, "below that of %d", n);
                for (int i = 0; i < 255; i++) code[i] = (unsigned char)i;
                void *const loaded[] = { word, code, grid }, *const stored[] = { word, back, grid };
                isa->loads[PROPTIM_STEPS8][PROPTIM_F32](loaded, 255);
                for (int i = 0; i < 255; i++) {
                    const double size = fabs(word[i]) * (i < 170 ? 1 : 0x1p-90);
                    const double expected = largest[l] * exp2(-(i % 85) / (double)n);
                    CHECK(fabs(size / expected - 1) < 0x1p-21 || expected < FLT_MIN, "%s: %d of %g, %d is %g",
                          isa->name, i, largest[l], n, size);
                    CHECK(!signbit(word[i]) == (i / 85 != 1), "%s: sign of %d", isa->name, i);
                    word[i] *= (float)exp2(by / (double)n);
                }
                isa->stores[PROPTIM_STEPS8][PROPTIM_F32](stored, 255);
                for (int i = 0; i < 255; i++) {
                    const int k = i % 85 - by, held = k < 0 ? 0 : k > 84 ? 84 : k;
                    const double size = largest[l] * exp2(-k / (double)n);
                    if (size < 0x1p-50 || size > 0x1p37) continue; /* no step size */
                    CHECK(back[i] == i / 85 * 85 + held, "%s: %d times 2^(%d / %d) of %g is stored as %d", isa->name, i,
                          by, n, largest[l], back[i]);
                }
            }
}

int main(int argc, char **argv)
{
    const proptim_isa *isas[MOST_ISAS];
    const int n_isas = take_part(isas);
    if (argc > 1 && !strcmp(argv[1], "time")) {
        time_steps();
        return 0;
    }
    for (int i = 0; i < n_isas; i++) {
        for (int s = 0; s < 2; s++) {
            for (int dtype = 0; dtype < PROPTIM_DTYPES; dtype++) {
                check_all(isas[i], &sixteens[s], dtype);
                check_rounding(isas[i], &sixteens[s], dtype);
                check_dither(isas[i], &sixteens[s], dtype);
            }
            check_instructions(isas[i], &sixteens[s]);
            check_master(isas[i], &sixteens[s]);
        }
        check_dither_float32(isas[i]);
        check_split(isas[i]);
        check_other_floats(isas[i]);
        check_fused(isas[i]);
        check_blocks(isas[i], PROPTIM_INT8);
        check_blocks(isas[i], PROPTIM_SQUARES8);
        check_middles(isas[i], PROPTIM_INT8);
        check_middles(isas[i], PROPTIM_SQUARES8);
        check_dither_levels(isas[i], PROPTIM_INT8);
        check_dither_levels(isas[i], PROPTIM_SQUARES8);
        check_grids(isas[i]);
        for (int dtype = 0; dtype < PROPTIM_DTYPES; dtype++) {
            check_sizes_and_signs(isas[i], dtype);
            check_words(isas[i], dtype);
        }
    }
    printf("every number of 16 bits, in %d tables of codecs\n", n_isas);
    return 0;
}
