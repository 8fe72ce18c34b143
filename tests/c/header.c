/* header.c - the public header alone, as C99 and (header.cpp) as C++11: it compiles without a warning, and links. */
#include "proptim.h"

int main(void) { return proptim_isa_find(NULL) == NULL; }
