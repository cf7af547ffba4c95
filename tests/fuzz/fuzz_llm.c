/* Answers of a model server: any bytes in any pieces leave a stream in one of its states. */
#include "tune/llm_internal.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    kg_llm_stream s;
    size_t piece = size ? (size_t)data[0] % 31 + 1 : 1;
    kg_llm_stream_init(&s);
    for (size_t i = 1; i < size; i += piece)
        if (!kg_llm_stream_feed(&s, (const char *)data + i, size - i < piece ? size - i : piece))
            break;
    kg_llm_state state = kg_llm_stream_end(&s);
    if (state == KG_LLM_ERROR && !s.error.len)
        __builtin_trap();
    kg_llm_stream_free(&s);
    return 0;
}
