/* codecs/all.h - the C text of every codec but those of one byte, for the type that the includer has defined. */
#include "words.h"

#include "dither.h"

#include "float32.h"
#include "float64.h"
#include "halves.h"
#include "split.h"
#include "steps.h"
