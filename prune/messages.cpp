#include "messages.h"

#include <coppice/error.h>
#include <coppice/prune.h>

#include <cstdio>

namespace coppice::prune {

std::string text_of(double value, int digits) {
    char text[32];
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    return text;
}

std::regex regex_of(const char* where, const char* option, const std::string& pattern, const char* of_layer4) {
    try {
        return std::regex(pattern);
    } catch (const std::regex_error&) {
        throw InvalidArgument(where, std::string(option) + " holds \"" + pattern + "\", which is no regular expression",
                              std::string("Write \"layer4\\\\..*\" for ") + of_layer4 + ".");
    }
}

void no_match(const std::string& where, const std::string& option, const std::string& pattern,
              const std::vector<PrunableInfo>& layers) {
    std::vector<std::string> names;
    for (const auto& layer : layers) names.push_back(layer.layer);
    const auto nearest = nearest_name(pattern, names);
    throw InvalidArgument(where, option + " \"" + pattern + "\" matches no layer",
                          nearest ? "Did you mean \"" + *nearest + "\"?" : "See `coppice inspect` for the names.");
}

std::vector<std::regex> ignore_patterns(const char* where, const std::vector<std::string>& patterns,
                                        const char* of_layer4) {
    std::vector<std::regex> expressions;
    for (const auto& pattern : patterns) expressions.push_back(regex_of(where, "ignore", pattern, of_layer4));
    return expressions;
}

}  // namespace coppice::prune
