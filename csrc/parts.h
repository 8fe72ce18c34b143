/* parts.h - how work is cut into parts for threads.  Internal. */
#ifndef PROPTIM_PARTS_H
#define PROPTIM_PARTS_H

#include <stddef.h>

enum {
    /*
     * Elements of a part, which take 1 to 10 us.  The thread that finishes first waits at most as long as one part
     * takes, and so finds the next step before it goes to sleep.  Taking a part from the pool costs 0.1 us.
     */
    PART = 8192,
    MOST_THREADS = 1024, /* for which a step is cut, more than any step can use; the pool counts parts in 24 bits */
    PARTS_A_THREAD = 64, /* at most: waiting for the last part, and sleeping, is then short compared with the work */
    /*
     * Least number of elements of a part for each array: every part searches for its first array from the beginning,
     * and to pass one array costs as much as ten elements.
     */
    PART_FOR_ARRAY = 128
};

/* Into how many parts to cut these elements of so many arrays: at least one for each thread. */
static inline int parts_of(size_t elements, size_t arrays, int threads)
{
    const size_t part = arrays * PART_FOR_ARRAY > PART ? arrays * PART_FOR_ARRAY : PART;
    const size_t parts = elements / part, least = threads < MOST_THREADS ? (size_t)threads : MOST_THREADS;
    const size_t most = least * PARTS_A_THREAD;
    return (int)(parts < least ? least : parts > most ? most : parts);
}

/* units * part / parts, without overflow. */
static inline size_t part_begin(size_t units, int part, int parts)
{
    const size_t each = units / (size_t)parts, rest = units % (size_t)parts;
    return each * (size_t)part + rest * (size_t)part / (size_t)parts;
}

#endif
