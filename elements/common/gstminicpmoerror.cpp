#include "common/gstminicpmoerror.h"

#include <string>

using minicpmo::ErrorCode;

namespace {

struct DomainAndCode {
  GQuark domain;
  gint code;
};

DomainAndCode domain_and_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kNotFound:
      return {GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_NOT_FOUND};
    case ErrorCode::kOpenRead:
      return {GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_OPEN_READ};
    case ErrorCode::kCorrupt:
      return {GST_STREAM_ERROR, GST_STREAM_ERROR_WRONG_TYPE};
    case ErrorCode::kNoSpace:
      return {GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_NO_SPACE_LEFT};
    case ErrorCode::kBusy:
      return {GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_BUSY};
    case ErrorCode::kLibrary:
      return {GST_LIBRARY_ERROR, GST_LIBRARY_ERROR_INIT};
    case ErrorCode::kSettings:
      return {GST_LIBRARY_ERROR, GST_LIBRARY_ERROR_SETTINGS};
    case ErrorCode::kFormat:
      return {GST_STREAM_ERROR, GST_STREAM_ERROR_FORMAT};
    case ErrorCode::kContextFull:
    case ErrorCode::kCancelled:
    case ErrorCode::kFailed:
      break;
  }
  return {GST_STREAM_ERROR, GST_STREAM_ERROR_FAILED};
}

// Names of files and what they hold need not be UTF-8; a message has to be.
gchar* valid_text(const std::string& s) {
  return g_utf8_make_valid(s.data(), static_cast<gssize>(s.size()));
}

}  // namespace

void gst_minicpmo_post(GstElement* element, GstMessageType type, const minicpmo::Error& error) {
  const auto [domain, code] = domain_and_code(error.code);
  gchar* debug = error.detail.empty() ? nullptr : valid_text(error.detail);
  gst_element_message_full(element, type, domain, code, valid_text(error.message), debug, __FILE__,
                           GST_FUNCTION, __LINE__);
}
