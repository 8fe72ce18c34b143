/*
 * stages/average.h - average <- average + share * (param - average), of the parameter as the step has stored it;
 * share = 1 - decay.
 */
static inline void FN(average)(ARGS(average), size_t i)
{
    VEC average = GET(average);
    PUT(average, ADD(average, MUL(k->coef, SUB(GET(param), average))));
}
