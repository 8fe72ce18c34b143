# The target proptim::proptim: csrc/, compiled into whoever links it.
#
# proptim itself is built by this file. In an installed package it lies beside csrc/ as it does here, and
# find_package(proptim) includes it.

include_guard(GLOBAL)

# The same bits everywhere: no fused multiply-add. errno of sqrt is not asked for.
if(MSVC)
  set(PROPTIM_EXACT /fp:precise)
else()
  set(PROPTIM_EXACT -ffp-contract=off -fno-math-errno)
endif()

function(_proptim_add_library) # a scope of its own: nothing is set where find_package was called
  get_filename_component(csrc "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../csrc" ABSOLUTE)
  set(sources api cpu dispatch plan reduce strided parallel_pool kernels_scalar kernels_avx2 kernels_avx512 kernels_neon)
  list(TRANSFORM sources REPLACE "(.+)" "${csrc}/\\1.c")
  add_library(proptim STATIC ${sources})
  add_library(proptim::proptim ALIAS proptim)
  target_include_directories(proptim PUBLIC "$<BUILD_INTERFACE:${csrc}/include>")
  target_compile_features(proptim PRIVATE c_std_11)
  # No LTO: a file compiled for one instruction set must not be inlined into, or lend code to, any other.
  set_target_properties(proptim PROPERTIES
    POSITION_INDEPENDENT_CODE ON C_VISIBILITY_PRESET hidden C_EXTENSIONS OFF INTERPROCEDURAL_OPTIMIZATION OFF)
  # -O3: unrolling and unswitching of the rules' loops, which -O2 of most compilers leaves alone.
  target_compile_options(proptim PRIVATE ${PROPTIM_EXACT}
    $<$<NOT:$<OR:$<CONFIG:Debug>,$<C_COMPILER_ID:MSVC>>>:-O3>)
  if(MSVC)
    target_compile_options(proptim PRIVATE /experimental:c11atomics) # <stdatomic.h>
  endif()
  set(THREADS_PREFER_PTHREAD_FLAG ON)
  find_package(Threads)
  if(CMAKE_USE_PTHREADS_INIT)
    target_compile_definitions(proptim PRIVATE PROPTIM_POOL)
    target_link_libraries(proptim PUBLIC Threads::Threads)
  endif()
  if(UNIX)
    target_link_libraries(proptim PUBLIC m)
  endif()
endfunction()
_proptim_add_library()
