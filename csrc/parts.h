/* parts.h - where a part of some work begins.  Internal. */
#ifndef PROPTIM_PARTS_H
#define PROPTIM_PARTS_H

#include <stddef.h>

/* units * part / parts, without overflow. */
static inline size_t part_begin(size_t units, int part, int parts)
{
    const size_t each = units / (size_t)parts, rest = units % (size_t)parts;
    return each * (size_t)part + rest * (size_t)part / (size_t)parts;
}

#endif
