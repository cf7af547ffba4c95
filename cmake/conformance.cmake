# Our own declarations of foreign ABIs, held against the real headers by static asserts. Each foreign
# thing is one C++ file in csrc/conformance and is compiled only where its headers are; what was left out
# is said at configuration. Nothing is linked: compiling is the test.
include(CheckLanguage)
check_language(CXX)

set(KGEN_TORCH_INCLUDE "" CACHE PATH "torch/include; empty: asked of KGEN_PYTHON")
set(KGEN_PYTHON "" CACHE FILEPATH "The Python whose torch is meant; empty: .venv's, else python3")

function(kg_find_torch out)
  set(${out} "${KGEN_TORCH_INCLUDE}" PARENT_SCOPE)
  if(KGEN_TORCH_INCLUDE)
    return()
  endif()
  set(python "${KGEN_PYTHON}")
  if(NOT python AND EXISTS ${CMAKE_SOURCE_DIR}/.venv/bin/python)
    set(python ${CMAKE_SOURCE_DIR}/.venv/bin/python)
  endif()
  if(NOT python)
    set(python python3)
  endif()
  # find_spec does not import torch, so this takes milliseconds.
  execute_process(COMMAND ${python} -c
    "import importlib.util as u; s = u.find_spec('torch'); print(list(s.submodule_search_locations)[0] if s else '')"
    OUTPUT_VARIABLE where OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed AND EXISTS "${where}/include/torch/csrc/stable/c/shim.h")
    set(${out} "${where}/include" PARENT_SCOPE)
  endif()
endfunction()

# The folder with cuda.h or nvrtc.h: a toolkit's, or what -DKGEN_CUDA_INCLUDE names (pip's packages).
set(KGEN_CUDA_INCLUDE "" CACHE PATH "Folder of cuda.h and nvrtc.h; empty: the toolkit's")
function(kg_find_cuda out header)
  find_path(KG_PATH_${header} ${header} NO_CACHE
    PATHS ${KGEN_CUDA_INCLUDE} $ENV{CUDA_HOME}/include $ENV{CUDA_PATH}/include /usr/local/cuda/include)
  if(KG_PATH_${header})
    set(${out} "${KG_PATH_${header}}" PARENT_SCOPE)
  endif()
endfunction()

# kg_conformance(name source.cpp declarations.h include-folder...): adds the file to kgen-conformance,
# or says why not.
function(kg_conformance name source declares)
  if(NOT EXISTS ${CMAKE_SOURCE_DIR}/${declares})
    return()
  endif()
  if(NOT ARGN)
    message(STATUS "conformance: no headers of ${name} found, left out")
    return()
  endif()
  add_library(kg_conformance_${name} OBJECT ${CMAKE_SOURCE_DIR}/csrc/conformance/${source})
  set_target_properties(kg_conformance_${name} PROPERTIES EXCLUDE_FROM_ALL ON
    CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON)
  target_include_directories(kg_conformance_${name} PRIVATE ${CMAKE_SOURCE_DIR}/csrc)
  target_include_directories(kg_conformance_${name} SYSTEM PRIVATE ${ARGN})
  target_compile_options(kg_conformance_${name} PRIVATE -Wall -Wextra -Werror)
  add_dependencies(kgen-conformance kg_conformance_${name})
endfunction()

add_custom_target(kgen-conformance)
if(CMAKE_CXX_COMPILER)
  enable_language(CXX)
  kg_find_torch(TORCH_INCLUDE)
  kg_conformance(torch torch_abi_conformance.cpp csrc/runtime/torch_abi.h ${TORCH_INCLUDE})
  kg_find_cuda(CUDA_INCLUDE cuda.h)
  kg_conformance(cuda cuda_conformance.cpp csrc/sys/cuda_abi.h ${CUDA_INCLUDE})
  kg_find_cuda(NVRTC_INCLUDE nvrtc.h)
  kg_conformance(nvrtc nvrtc_conformance.cpp csrc/sys/nvrtc_abi.h ${NVRTC_INCLUDE})
  kg_find_cuda(NVML_INCLUDE nvml.h)
  kg_conformance(nvml nvml_conformance.cpp csrc/sys/nvml_abi.h ${NVML_INCLUDE})
else()
  message(STATUS "conformance: no C++ compiler, left out")
endif()
