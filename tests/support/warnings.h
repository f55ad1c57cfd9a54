// A log that keeps warnings.
#pragma once

#include <coppice/stage.h>

#include <string>
#include <vector>

namespace coppice::testing {

class Warnings final : public Log {
public:
    void write(const std::string& level, const std::string& message) override {
        if (level == "warning") texts.push_back(message);
    }
    std::vector<std::string> texts;
};

}  // namespace coppice::testing
