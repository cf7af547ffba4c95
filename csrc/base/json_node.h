/* What the reader, the builder and the writers of JSON share: cJSON's nodes, which nothing else
 * sees, and how deep they may lie. Not for others to include. */
#ifndef KG_BASE_JSON_NODE_H
#define KG_BASE_JSON_NODE_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "base/json.h"

#define DEPTH_MAX 64

/* Marks of a container of which a part was lost while it was built, above cJSON's own bits of
 * `type`: writing it fails, so that building needs no check at each step. cJSON copies the bits. */
#define LOST_MEMORY (1 << 16)
#define LOST_RANGE (1 << 17)

static inline bool kg_json_holds(const kg_json *j) {
    return cJSON_IsObject(j) || cJSON_IsArray(j);
}

#endif
