# Finds what comes from the system and says in one message what does not. pkg-config only hints:
# find_path and find_library decide, so a package unpacked anywhere works through CMAKE_PREFIX_PATH.
# libcurl is opened at its first use, so its header is needed here and the library is not.
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(PkgConfig QUIET)

add_library(kg_headers INTERFACE) # for compiling: all of them
add_library(kg_foreign INTERFACE) # for linking: cJSON and libmd; never given to libkgen_rt.so
set(KG_MISSING "")

# kg_need(NAME header pkg-config-module debian-package [library])
function(kg_need name header module package)
  if(PKG_CONFIG_FOUND)
    pkg_check_modules(PC_${name} QUIET ${module})
  endif()
  find_path(${name}_INCLUDE ${header} HINTS ${PC_${name}_INCLUDE_DIRS})
  set(wanted ${name}_INCLUDE)
  if(ARGN)
    find_library(${name}_LIBRARY ${ARGN} HINTS ${PC_${name}_LIBRARY_DIRS})
    list(APPEND wanted ${name}_LIBRARY)
  endif()
  mark_as_advanced(${wanted})
  foreach(what IN LISTS wanted)
    if(NOT ${what})
      set(KG_MISSING ${KG_MISSING} ${package} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  target_include_directories(kg_headers SYSTEM INTERFACE ${${name}_INCLUDE})
  if(ARGN)
    target_link_libraries(kg_foreign INTERFACE ${${name}_LIBRARY})
  endif()
endfunction()

kg_need(CJSON cjson/cJSON.h libcjson libcjson-dev cjson)
kg_need(LIBMD sha2.h libmd libmd-dev md)
kg_need(XXHASH xxhash.h libxxhash libxxhash-dev)
kg_need(CURL curl/curl.h libcurl libcurl4-openssl-dev)
if(KG_MISSING)
  list(JOIN KG_MISSING " " KG_MISSING)
  message(FATAL_ERROR "kgen needs packages that are not here. On Debian and Ubuntu:\n"
    "  apt-get install ${KG_MISSING}\n"
    "or unpack them and name the folder that holds include/ and lib/ with -DCMAKE_PREFIX_PATH=...")
endif()
