/* rules/all.h - the C text of every rule, for the vocabulary and type that the includer has defined. */
#include "adadelta.h"
#include "adagrad.h"
#include "adam.h"
#include "lion.h"
#include "nadam.h"
#include "rmsprop.h"
#include "rprop.h"
#include "sgd.h"
