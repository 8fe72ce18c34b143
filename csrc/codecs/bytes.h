/*
 * codecs/bytes.h - the codecs of one byte.  Their texts are functions FN(name_load)(x, code, k, i) and FN(name_store)
 * on the elements i .. i + WIDTH - 1, in the vocabulary, as the texts of rules are; k has the numbers of a block.
 */

/* At width 1 without branches, many of which would be mispredicted, so that compilers vectorize the loop of scalar. */
#if WIDTH == 1
#undef SELECT
#undef AND
#undef MIN
#undef MAX
#undef FLIPSIGN
#undef DIFFER
#define SIGN_OF(x)      (CAT(word, TYPE)(x) & CAT(word, TYPE)(-(REAL)0))
#define SELECT(m, x, y) FN(pick)(m, x, y)
#define AND(m, n)       ((m) & (n))
#define MIN(x, y)       SELECT(LT(x, y), x, y)
#define MAX(x, y)       SELECT(GT(x, y), x, y)
#define FLIPSIGN(x, y)  CAT(real, TYPE)(CAT(word, TYPE)(x) ^ SIGN_OF(y))
#define DIFFER(x, y)    (int)((SIGN_OF(x) ^ SIGN_OF(y)) >> 31)
static inline REAL FN(pick)(int yes, REAL x, REAL y)
{
    const WORD w = CAT(word, TYPE)(y);
    return CAT(real, TYPE)(w ^ ((CAT(word, TYPE)(x) ^ w) & -(WORD)yes));
}
#undef LOOKUP
#define LOOKUP(table, x) FN(entry)(table, x)
static inline REAL FN(entry)(const REAL *table, REAL x)
{
    const WORD w = CAT(word, TYPE)(x);
    const int one = w >> 20 & 1, two = w >> 21 & 1, four = w >> 22 & 1;
    const REAL a = SELECT(two, SELECT(one, table[3], table[2]), SELECT(one, table[1], table[0]));
    const REAL b = SELECT(two, SELECT(one, table[7], table[6]), SELECT(one, table[5], table[4]));
    return SELECT(four, b, a);
}
#endif

#include "levels.h"
#define AVERAGES CAT(averages, CAT(FORM, CAT(numbers, TYPE)))
#define STEPS    CAT(steps, CAT(FORM, CAT(numbers, TYPE)))
#include "int8.h"
#include "squares8.h"
#include "steps8.h"
#undef AVERAGES
#undef STEPS
