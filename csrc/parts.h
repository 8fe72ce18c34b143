/* parts.h - how work is cut into parts for threads.  Internal. */
#ifndef PROPTIM_PARTS_H
#define PROPTIM_PARTS_H

#include <stddef.h>

enum {
    /*
     * Elements of a part: 1 to 10 us.  Who finishes first waits for no longer than a part takes, and so finds the next
     * step before it falls asleep; taking a part costs 0.1 us.
     */
    PART = 8192,
    PARTS_A_THREAD = 64 /* at most: then a part is a hundredth of the work */
};

/* How many parts some elements make for these threads, one for each at least. */
static inline int parts_of(size_t elements, int threads)
{
    const size_t parts = elements / PART, least = (size_t)threads, most = least * PARTS_A_THREAD;
    return (int)(parts < least ? least : parts > most ? most : parts);
}

/* units * part / parts, without overflow. */
static inline size_t part_begin(size_t units, int part, int parts)
{
    const size_t each = units / (size_t)parts, rest = units % (size_t)parts;
    return each * (size_t)part + rest * (size_t)part / (size_t)parts;
}

#endif
