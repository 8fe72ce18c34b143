/* simde/immintrin.h - stands in for the compiler's header: the same intrinsics in portable C, by SIMDe. */
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

/* SIMDe 0.7 has the types, but not under these names. */
typedef simde__mmask8 __mmask8;
typedef simde__mmask16 __mmask16;
