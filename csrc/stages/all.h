/* stages/all.h - the C text of every stage, for the vocabulary and type that the includer has defined. */
#include "average.h"
#include "clip.h"
#include "decay.h"
#include "flush.h"
#include "l2.h"
#include "scale.h"
#include "zero.h"
