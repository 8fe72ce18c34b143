/* rules/all.h - the C text of every rule, for the vocabulary and type that the includer has defined. */
#include "rules/adadelta.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/lion.h"
#include "rules/nadam.h"
#include "rules/rmsprop.h"
#include "rules/rprop.h"
#include "rules/sgd.h"
