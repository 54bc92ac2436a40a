# Sets the flags of HEADWAY_SANITIZE for every target that follows, ours and fetched ones.

if(NOT HEADWAY_SANITIZE STREQUAL "")
  if(HEADWAY_SANITIZE STREQUAL "thread")
    set(HEADWAY_SANITIZE_FLAGS -fsanitize=thread)
  elseif(HEADWAY_SANITIZE STREQUAL "fuzzer")
    if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
      message(FATAL_ERROR "HEADWAY_SANITIZE=fuzzer needs clang: -DCMAKE_CXX_COMPILER=clang++-14")
    endif()
    set(HEADWAY_SANITIZE_FLAGS -fsanitize=fuzzer-no-link,address,undefined
                               -fno-sanitize-recover=all)
  elseif(HEADWAY_SANITIZE STREQUAL "address")
    # Undefined behaviour would only print a line and go on; here it ends the test.
    set(HEADWAY_SANITIZE_FLAGS -fsanitize=address,undefined -fno-sanitize-recover=all)
  else()
    message(FATAL_ERROR "HEADWAY_SANITIZE is '${HEADWAY_SANITIZE}': empty, thread, address or fuzzer")
  endif()
  if(HEADWAY_BUILD_PYTHON)
    message(FATAL_ERROR "HEADWAY_SANITIZE builds C++ tests and fuzzers only: an interpreter that was not "
                        "built with the sanitizer cannot load the extension")
  endif()
  add_compile_options(${HEADWAY_SANITIZE_FLAGS} -O1 -g1 -fno-omit-frame-pointer)
  add_link_options(${HEADWAY_SANITIZE_FLAGS})
endif()
