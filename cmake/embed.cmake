# Makes a C file of texts: cmake -DOUT=x.c -DHEADER=tune/x.h -DNAME=kg_x -DTEXTS="a;b" -P embed.cmake
# defines NAME[], the texts one after the other and a NUL, and NAME_bytes.
set(hex "")
foreach(text IN LISTS TEXTS)
  file(READ ${text} one HEX)
  string(APPEND hex "${one}")
endforeach()
string(LENGTH "${hex}" digits)
math(EXPR bytes "${digits} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," list "${hex}")
string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)"
  "\\1\n" list "${list}")
set(content "/* Made by cmake/embed.cmake. */\n#include \"${HEADER}\"\n\n")
string(APPEND content "const char ${NAME}[] = {\n${list}0};\nconst size_t ${NAME}_bytes = ${bytes};\n")
file(WRITE ${OUT} "${content}")
