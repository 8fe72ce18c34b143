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
    PARTS_A_THREAD = 64, /* at most: then the wait is small beside the work, and sleeping is too */
    /* Elements of a part for each array: every part looks for its own from the first on, which costs as much as ten. */
    PART_FOR_ARRAY = 128
};

/* How many parts the elements of some arrays make for these threads, one for each at least. */
static inline int parts_of(size_t elements, size_t arrays, int threads)
{
    const size_t part = arrays * PART_FOR_ARRAY > PART ? arrays * PART_FOR_ARRAY : PART;
    const size_t parts = elements / part, least = (size_t)threads, most = least * PARTS_A_THREAD;
    return (int)(parts < least ? least : parts > most ? most : parts);
}

/* units * part / parts, without overflow. */
static inline size_t part_begin(size_t units, int part, int parts)
{
    const size_t each = units / (size_t)parts, rest = units % (size_t)parts;
    return each * (size_t)part + rest * (size_t)part / (size_t)parts;
}

#endif
