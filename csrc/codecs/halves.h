/* codecs/halves.h - the codecs of numbers of 16 bits, for the vocabulary that the includer has chosen. */
#include "bf16.h"
#include "bf16_copy.h"
#include "bf16_master.h"
#include "f16.h"
#include "f16_copy.h"
#include "f16_master.h"
