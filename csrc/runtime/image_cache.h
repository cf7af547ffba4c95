/* The per-user cache of images: files named by what they are of and by what built them. Internal to
 * image*.c. */
#ifndef KG_RUNTIME_IMAGE_CACHE_H
#define KG_RUNTIME_IMAGE_CACHE_H

#include <stdbool.h>

#include "base/buf.h"
#include "base/error.h"

enum { KG_MAX_IMAGE = 64 << 20, KG_IMAGE_PATH = 512 };

/* What an image is of: rules, architecture, flags, text. */
int kg_image_key(const char *rules, const char *source, size_t n, const char *arch, unsigned flags,
                 char hex[33], kg_error *err);
/* Where the image of key and builder is, or would be. builder NULL: some builder's image of the
 * same source, if there is one. False when there is no cache to name it in. */
bool kg_image_entry(const char *key, const char *builder, const char *suffix,
                    char path[KG_IMAGE_PATH]);
/* Adds the image to out. False when there is none, or it is damaged (which is logged). */
bool kg_image_read(const char *path, kg_buf *out);
/* False, logged once, when the cache cannot be written. */
bool kg_image_write(const char *path, const kg_buf *image);

#endif
