/// The parts of JSON schema that Coppice's own schemas use, checked one by one.
#pragma once

#include <coppice/registry.h>

#include <string>
#include <vector>

namespace coppice::testing {

/// What is wrong with `value`, one clause each; empty when it fits. A keyword that this does not know is an error, too.
std::vector<std::string> schema_violations(const Json& value, const Json& schema);

}  // namespace coppice::testing
