/// What the stages of this module say in the same words. Private to prune.
#pragma once

#include <regex>
#include <string>
#include <vector>

namespace coppice::prune {

struct PrunableInfo;

/// "0.25": with that many significant digits.
std::string text_of(double value, int digits = 3);

/// @param of_layer4  what "layer4\\..*" would name, for the message
/// @throws InvalidArgument from `where` when `pattern`, of option `option`, is no regular expression
std::regex regex_of(const char* where, const char* option, const std::string& pattern,
                    const char* of_layer4 = "all layers below layer4");

/// @throws InvalidArgument: `pattern`, of option `option`, matches none of `layers`
[[noreturn]] void no_match(const std::string& where, const std::string& option, const std::string& pattern,
                           const std::vector<PrunableInfo>& layers);

/// The regular expressions of `ignore`.
std::vector<std::regex> ignore_patterns(const char* where, const std::vector<std::string>& patterns,
                                        const char* of_layer4 = "all layers below layer4");

}  // namespace coppice::prune
