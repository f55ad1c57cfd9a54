/// A shared library that is opened at run time, so that one binary serves machines with and without it.
#pragma once

#include <dlfcn.h>

#include <filesystem>
#include <string>

namespace coppice::eval {

class Library {
public:
    explicit Library(const std::filesystem::path& path) : handle_(::dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL)) {
        if (!handle_) {
            const char* text = ::dlerror();
            failure_ = text ? text : "cannot be loaded";
        }
    }
    ~Library() {
        if (handle_) ::dlclose(handle_);
    }
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;

    const std::string& failure() const { return failure_; }  ///< empty when it is open
    /// Null when the library has no such function.
    template <typename Function>
    Function* function(const char* name) const {
        return handle_ ? reinterpret_cast<Function*>(::dlsym(handle_, name)) : nullptr;
    }

private:
    void* handle_;
    std::string failure_;
};

/// Is there a PCI display or accelerator device of this vendor ("0x10de")? @param root  below which /sys lies
bool has_gpu(const std::filesystem::path& root, const std::string& vendor);

}  // namespace coppice::eval
