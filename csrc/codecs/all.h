/* codecs/all.h - the C text of every codec but those of one byte, for the type that the includer has defined. */
#include "words.h"

#include "dither.h"

#include "bf16.h"
#include "bf16_copy.h"
#include "bf16_master.h"
#include "f16.h"
#include "f16_copy.h"
#include "f16_master.h"
#include "float32.h"
#include "float64.h"
#include "split.h"
#include "steps.h"
