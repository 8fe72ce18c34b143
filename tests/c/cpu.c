/*
 * cpu.c - what dispatch chooses on this CPU.  With arguments, what it must choose: qemu-user can be CPUs of many ages.
 *
 *   cpu                      say it
 *   cpu <best> <likes>       the name of the best instruction set; 1 if 512-bit vectors would be worth it
 */
#include "check.h"
#include "cpu.h"

int main(int argc, char **argv)
{
    const char *best = proptim_isa_name(proptim_isa_find(NULL));
    const int likes = proptim_cpu_likes_avx512();
    printf("best %s, likes AVX-512: %d\n", best, likes);
    CHECK(argc < 2 || !strcmp(argv[1], best), "expected %s", argv[1]);
    CHECK(argc < 3 || atoi(argv[2]) == likes, "expected %s", argv[2]);
    return 0;
}
