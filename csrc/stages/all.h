/* stages/all.h - the C text of every stage, for the vocabulary and type that the includer has defined. */
#include "stages/clip.h"
#include "stages/decay.h"
#include "stages/flush.h"
#include "stages/l2.h"
#include "stages/scale.h"
#include "stages/zero.h"
