/*
 * cpu.c - what dispatch chooses on this CPU.  The arguments are what it must choose: qemu-user emulates older and newer
 * CPUs.
 *
 *   cpu                          print the choice
 *   cpu <best> <likes> <mixed>   the name of the best instruction set; 1 if 512-bit vectors would be worth it; which
 *                                of their roots would be mixed, as cpu.c has it
 */
#include "check.h"
#include "cpu.h"

int main(int argc, char **argv)
{
    const char *best = proptim_isa_name(proptim_isa_find(NULL));
    const int likes = proptim_cpu_likes_avx512(), mixed = (int)proptim_cpu_mixed_roots();
    printf("best %s, likes AVX-512: %d, mixed roots: %d\n", best, likes, mixed);
    CHECK((int)atomic_load(&proptim_mixed_roots) == mixed, "set by proptim_isa_find()");
    CHECK(argc < 2 || !strcmp(argv[1], best), "expected %s", argv[1]);
    CHECK(argc < 3 || atoi(argv[2]) == likes, "expected %s", argv[2]);
    CHECK(argc < 4 || atoi(argv[3]) == mixed, "expected %s", argv[3]);
    return 0;
}
