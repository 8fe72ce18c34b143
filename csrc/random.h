/*
 * random.h - the words of random bits by which stores round with PROPTIM_STOCHASTIC.  Internal.
 *
 * The word of an element is a hash of (seed, parameter, array, step, index), where the index counts the elements of the
 * whole array in C order.  So it does not depend on the order in which elements are stepped, on threads, strides and
 * instruction sets, and a run that is resumed goes on with the same words.  The Python twin is in `_random.py`.
 *
 *   key   64 bits: 0, and then key <- mix((key ^ n) + 0x9e3779b97f4a7c15) for n = seed, parameter, array, step and
 *         index / 2^32.  mix() is the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
 *   word  32 bits: two rounds of multiplication and shift on index 0x9e3779b9 mod 2^32.  Those constants are of
 * lowbias32 (Wellons, hash-prospector 2018); half of the key goes in before the first round, half before the second.
 *         Without the factor, differences of the words of neighbours are distributed unevenly.
 */
#ifndef PROPTIM_RANDOM_H
#define PROPTIM_RANDOM_H

#include <stdint.h>

static inline uint64_t random_key(uint64_t key, uint64_t n)
{
    key = (key ^ n) + 0x9e3779b97f4a7c15u;
    key = (key ^ key >> 30) * 0xbf58476d1ce4e5b9u;
    key = (key ^ key >> 27) * 0x94d049bb133111ebu;
    return key ^ key >> 31;
}

#define RANDOM_STRIDE 0x9e3779b9u /* 2^32 divided by the golden ratio, as an odd number */

/* The word of an element, from `product`: its index times the factor, modulo 2^32. */
static inline uint32_t random_word(uint64_t key, uint32_t product)
{
    uint32_t word = product + (uint32_t)key;
    word = (word ^ word >> 16) * 0x7feb352du ^ (uint32_t)(key >> 32);
    word = (word ^ word >> 15) * 0x846ca68bu;
    return word ^ word >> 16;
}

#endif
