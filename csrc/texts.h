/* texts.h - the C text of every row of list.def. */
#include "rules/all.h"
#include "stages/all.h"
