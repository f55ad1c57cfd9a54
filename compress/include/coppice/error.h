/// Errors of Coppice. Every one says where it happened, what is wrong and how to fix it.
#pragma once

#include <stdexcept>
#include <string>

namespace coppice {

/// Base of all errors. what() reads "where: problem. fix".
class Error : public std::runtime_error {
public:
    /// @param where   what the user can find: a file, a recipe line, a stage and layer
    /// @param problem what is wrong there, without a full stop
    /// @param fix     what to do about it, a sentence; empty when nothing can be done
    Error(std::string where, std::string problem, std::string fix);

    const std::string& where() const noexcept { return where_; }
    const std::string& problem() const noexcept { return problem_; }
    const std::string& fix() const noexcept { return fix_; }

private:
    std::string where_, problem_, fix_;
};

/// The caller, the command line or the recipe is wrong.
class InvalidArgument : public Error {
    using Error::Error;
};

/// Good TorchScript that Coppice, or one stage of it, cannot treat; names operator and scope.
class UnsupportedModel : public Error {
    using Error::Error;
};

/// A file cannot be read or written, or does not hold what it should.
class IoError : public Error {
    using Error::Error;
};

/// An instrument failed, or gave something that cannot be true.
class MeasurementError : public Error {
    using Error::Error;
};

/// The user asked to stop (Ctrl-C). What was finished before is on disk.
class Interrupted : public Error {
    using Error::Error;
};

/// A bug in Coppice.
class InternalError : public Error {
    using Error::Error;
};

/// The message of any exception without LibTorch's backtrace, on one line.
std::string message_of(const std::exception& error);

}  // namespace coppice
