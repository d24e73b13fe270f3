// Finding the engine: through GstContext "gst.minicpmo.Model" (own, neighbours, application, then a
// new one), with a process-wide cache of engines behind it in the backend. And loading the backend
// library itself.
#pragma once

#include <gst/gst.h>

#include <memory>

#include "common/stage.h"

#define GST_MINICPMO_CONTEXT_TYPE "gst.minicpmo.Model"

// The backend library, opened once per process and never closed. kLibrary error that names the
// missing file. Looked for in $MINICPMO_BACKEND_DIR and, if that is not set, beside the plugin,
// where it was built or installed, then by the loader.
minicpmo::Result<const minicpmo::Backend*> gst_minicpmo_backend_get();
// Tests put a backend of their own here before any element leaves NULL; nullptr takes it away.
void gst_minicpmo_backend_set_for_testing(const minicpmo::Backend* backend);

// The default of the `model` property: $MINICPMO_MODEL, the installed small checkpoint, or the one
// in the source tree.
const gchar* gst_minicpmo_default_model();

// A context that holds an engine, and back (nullptr if the context holds none or another model's).
GstContext* gst_minicpmo_context_new(const std::shared_ptr<minicpmo::Engine>& engine,
                                     const minicpmo::EngineOptions& options);
std::shared_ptr<minicpmo::Engine> gst_minicpmo_context_get_engine(
    GstContext* context, const minicpmo::EngineOptions& options);

// The steps of GstContext for `element`: queries neighbours, posts NEED_CONTEXT, opens an engine,
// posts HAVE_CONTEXT. Call without locks.
minicpmo::Result<std::shared_ptr<minicpmo::Engine>> gst_minicpmo_ensure_engine(
    GstElement* element, const minicpmo::EngineOptions& options);
