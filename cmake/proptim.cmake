# The target proptim::proptim: csrc/, compiled as part of the project that links it.
#
# This file also builds proptim itself. In an installed package it is next to csrc/ as it is here, and
# find_package(proptim) includes it.

include_guard(GLOBAL)

# The same bits everywhere need unfused multiplications and additions. Nothing reads the errno of sqrt.
if(MSVC)
  set(PROPTIM_EXACT /fp:precise)
else()
  set(PROPTIM_EXACT -ffp-contract=off -fno-math-errno)
endif()

get_filename_component(_proptim_csrc "${CMAKE_CURRENT_LIST_DIR}/../csrc" ABSOLUTE)

# They also need arithmetic that is not wider than the type: with -std=c11 gcc promotes floats on s390x, and on 32-bit
# x86 it uses the x87 registers. Take the first flags with which the kernels compile, since they check this; if there are
# none, the build fails with their error message.
function(_proptim_find_narrow flags)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  foreach(tried "" "-fexcess-precision=fast" "-msse2 -mfpmath=sse")
    try_compile(compiles "${CMAKE_CURRENT_BINARY_DIR}" SOURCES "${_proptim_csrc}/kernels_scalar.c"
      CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${_proptim_csrc}/include" "-DCOMPILE_DEFINITIONS=${tried}"
      C_STANDARD 11 C_EXTENSIONS OFF)
    set(found ${compiles})
    unset(compiles CACHE)
    if(found)
      separate_arguments(tried)
      set(${flags} "${tried}" PARENT_SCOPE)
      break()
    endif()
  endforeach()
endfunction()
if(NOT MSVC)
  _proptim_find_narrow(_proptim_narrow)
  list(APPEND PROPTIM_EXACT ${_proptim_narrow})
endif()

function(_proptim_add_sources target) # of csrc, by name
  set(csrc "${_proptim_csrc}")
  list(TRANSFORM ARGN REPLACE "(.+)" "${csrc}/\\1.c" OUTPUT_VARIABLE sources)
  target_sources(${target} PRIVATE ${sources})
  target_include_directories(${target} PUBLIC "$<BUILD_INTERFACE:${csrc}/include>")
  target_compile_features(${target} PRIVATE c_std_11)
  # No LTO: code compiled for one instruction set must not be inlined into other files.
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON C_VISIBILITY_PRESET hidden C_EXTENSIONS OFF INTERPROCEDURAL_OPTIMIZATION OFF)
  # -O3 unrolls and unswitches the loops of the rules, which -O2 of most compilers does not.
  target_compile_options(${target} PRIVATE ${PROPTIM_EXACT}
    $<$<NOT:$<OR:$<CONFIG:Debug>,$<C_COMPILER_ID:MSVC>>>:-O3>)
endfunction()

function(_proptim_add_library) # a scope of its own, so that find_package sets no variables in the caller
  set(sources api cpu dispatch plan reduce rows strided parallel_pool kernels_scalar kernels_avx2 kernels_avx512 kernels_neon)
  add_library(proptim STATIC)
  add_library(proptim::proptim ALIAS proptim)
  _proptim_add_sources(proptim ${sources})
  if(MSVC)
    target_compile_options(proptim PRIVATE /experimental:c11atomics) # <stdatomic.h>
  endif()
  if(WIN32)
    target_compile_definitions(proptim PRIVATE PROPTIM_POOL)
  else()
    set(THREADS_PREFER_PTHREAD_FLAG ON)
    find_package(Threads)
    if(CMAKE_USE_PTHREADS_INIT)
      target_compile_definitions(proptim PRIVATE PROPTIM_POOL)
      target_link_libraries(proptim PUBLIC Threads::Threads)
    endif()
  endif()
  if(UNIX)
    target_link_libraries(proptim PUBLIC m)
  endif()
endfunction()
_proptim_add_library()
