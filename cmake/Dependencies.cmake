# Finds Abseil, prometheus-cpp, pybind11, GoogleTest and Google Benchmark on the system, and fetches
# a pinned version of what is not there (of all of them with HEADWAY_FETCH_DEPS). A fetch can be
# turned to sources on disk with FETCHCONTENT_SOURCE_DIR_ABSEIL_CPP, _PROMETHEUS_CPP, _PYBIND11,
# _GOOGLETEST and _BENCHMARK. Every fetched library is static and ends up inside what links it.
#
# Debian 12's versions (Abseil 20220623.1, prometheus-cpp 1.0.1, GoogleTest 1.12.1, Benchmark 1.7.1)
# are the oldest supported. The pins are newer, because those no longer build with the newest
# compilers (GCC 13 misses <cstdint> in Abseil 20220623) and CMakes (4 refuses prometheus-cpp 1.0.1's
# minimum version).
#
# The checksums are SHA-256 of the projects' own release archives as published by others who build
# from them: Abseil's in Homebrew's formula and gRPC's Bazel files, prometheus-cpp's in xmake's
# package repository, civetweb's in prometheus-cpp's Bazel files and Spack, pybind11's and GoogleTest's in Bazel files (Google Benchmark's own among
# them), Google Benchmark's in Debian 13, whose orig.tar.gz is that archive unchanged.

include(FetchContent)

FetchContent_Declare(abseil_cpp SYSTEM
  URL https://github.com/abseil/abseil-cpp/archive/refs/tags/20240722.0.tar.gz
  URL_HASH SHA256=f50e5ac311a81382da7fa75b97310e4b9006474f9560ac46f54a9967f07d4ae3)
FetchContent_Declare(prometheus_cpp SYSTEM
  URL https://github.com/jupp0r/prometheus-cpp/archive/refs/tags/v1.3.0.tar.gz
  URL_HASH SHA256=ac6e958405a29fbbea9db70b00fa3c420e16ad32e1baf941ab233ba031dd72ee)
# No CMake project of it is wanted (there is none in that folder), only its two source files; and
# whoever asks for its package is to take those.
FetchContent_Declare(civetweb SYSTEM OVERRIDE_FIND_PACKAGE SOURCE_SUBDIR headway-builds-it-itself
  URL https://github.com/civetweb/civetweb/archive/refs/tags/v1.16.tar.gz
  URL_HASH SHA256=f0e471c1bf4e7804a6cfb41ea9d13e7d623b2bcc7bc1e2a4dd54951a24d60285)
FetchContent_Declare(pybind11 SYSTEM
  URL https://github.com/pybind/pybind11/archive/refs/tags/v3.0.4.tar.gz
  URL_HASH SHA256=74b6a2c2b4573a400cafb6ecbf60c98df300cd3d0041296b913d02b2cbbb2676)
FetchContent_Declare(googletest SYSTEM
  URL https://github.com/google/googletest/archive/refs/tags/v1.15.2.tar.gz
  URL_HASH SHA256=7b42b4d6ed48810c5362c265a17faebe90dc2373c885e5216439d37927f02926)
FetchContent_Declare(benchmark SYSTEM
  URL https://github.com/google/benchmark/archive/refs/tags/v1.9.1.tar.gz
  URL_HASH SHA256=32131c08ee31eeff2c8968d7e874f3cb648034377dfc32a4c377fa8796d84981)

set(HEADWAY_ABSL_TARGETS
    absl::btree absl::core_headers absl::flat_hash_map absl::inlined_vector absl::int128 absl::span
    absl::status absl::statusor absl::str_format absl::strings)

# A function, so that what it sets for a fetched project reaches nobody else.
function(headway_fetch name)
  message(STATUS "Headway: ${name} is built from source")
  # Their options are plain variables here, also to projects older than that policy.
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  set(CMAKE_WARN_DEPRECATED OFF)
  set(BUILD_SHARED_LIBS OFF)
  set(BUILD_TESTING OFF)
  foreach(setting IN LISTS ARGN)
    string(REPLACE "=" ";" setting "${setting}")
    list(GET setting 0 option)
    list(GET setting 1 value)
    set(${option} ${value})
  endforeach()
  FetchContent_MakeAvailable(${name})
endfunction()

macro(headway_find package)
  if(NOT HEADWAY_FETCH_DEPS)
    find_package(${package} ${ARGN} CONFIG QUIET)
  endif()
  if(${package}_FOUND)
    message(STATUS "Headway: ${package} ${${package}_VERSION} of the system (${${package}_DIR})")
  endif()
endmacro()

find_package(Threads REQUIRED)

headway_find(absl)
if(NOT absl_FOUND)
  headway_fetch(abseil_cpp ABSL_PROPAGATE_CXX_STD=ON ABSL_ENABLE_INSTALL=OFF
                ABSL_BUILD_TESTING=OFF)
endif()

# Debian's CMake configuration of prometheus-cpp also asks for libcurl and zlib, of which we need
# neither: so its pkg-config files are read.
if(NOT HEADWAY_FETCH_DEPS)
  find_package(PkgConfig QUIET)
  if(PkgConfig_FOUND)
    pkg_check_modules(PROMETHEUS_CPP QUIET IMPORTED_TARGET prometheus-cpp-core>=1.0.1
                                                           prometheus-cpp-pull>=1.0.1)
  endif()
endif()
if(PROMETHEUS_CPP_FOUND)
  message(STATUS "Headway: prometheus-cpp ${PROMETHEUS_CPP_prometheus-cpp-core_VERSION} of the system")
  set(HEADWAY_PROMETHEUS_TARGET PkgConfig::PROMETHEUS_CPP)
else()
  # The scrape server of prometheus-cpp stands on civetweb, which its archive comes without. Of that
  # we take what answers a GET: no files, no programs, no TLS.
  enable_language(C)
  headway_fetch(civetweb)
  FetchContent_GetProperties(civetweb SOURCE_DIR civetweb_SOURCE_DIR)
  add_library(headway_civetweb STATIC EXCLUDE_FROM_ALL ${civetweb_SOURCE_DIR}/src/civetweb.c
                                                       ${civetweb_SOURCE_DIR}/src/CivetServer.cpp)
  target_include_directories(headway_civetweb PUBLIC ${civetweb_SOURCE_DIR}/include)
  target_compile_definitions(headway_civetweb PRIVATE USE_IPV6 NO_CACHING NO_CGI NO_FILES NO_SSL
                             SOCKET_TIMEOUT_QUANTUM=200 PUBLIC CIVETWEB_API=)
  target_compile_options(headway_civetweb PRIVATE -w)
  target_link_libraries(headway_civetweb PUBLIC Threads::Threads ${CMAKE_DL_LIBS})
  # Imported, because prometheus-cpp exports what links it.
  add_library(civetweb::civetweb-cpp INTERFACE IMPORTED GLOBAL)
  target_link_libraries(civetweb::civetweb-cpp INTERFACE headway_civetweb)

  # Without the push gateway, which would bring libcurl.
  headway_fetch(prometheus_cpp ENABLE_PULL=ON ENABLE_PUSH=OFF ENABLE_COMPRESSION=OFF
                ENABLE_TESTING=OFF USE_THIRDPARTY_LIBRARIES=OFF GENERATE_PKGCONFIG=OFF
                OVERRIDE_CXX_STANDARD_FLAGS=OFF)
  set(HEADWAY_PROMETHEUS_TARGET prometheus-cpp::core prometheus-cpp::pull)
endif()

if(HEADWAY_BUILD_TESTS)
  headway_find(GTest)
  if(NOT GTest_FOUND)
    headway_fetch(googletest INSTALL_GTEST=OFF)
  endif()
endif()

if(HEADWAY_BUILD_BENCHMARKS)
  headway_find(benchmark)
  if(NOT benchmark_FOUND)
    headway_fetch(benchmark BENCHMARK_ENABLE_TESTING=OFF BENCHMARK_ENABLE_INSTALL=OFF)
  endif()
endif()

if(HEADWAY_BUILD_PYTHON)
  set(PYBIND11_FINDPYTHON ON)
  # The build environment of `pip install .` brings pybind11, also under HEADWAY_FETCH_DEPS: it is
  # headers only, and Debian 12's own is too old.
  find_package(pybind11 3.0 CONFIG QUIET)
  if(pybind11_FOUND)
    message(STATUS "Headway: pybind11 ${pybind11_VERSION} (${pybind11_DIR})")
  else()
    headway_fetch(pybind11)
  endif()
endif()
