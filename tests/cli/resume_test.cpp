// kill -9 and Ctrl-C at several points, then --resume: the result has the bits of a run without a break.
#include "program.h"

#include <signal.h>

#include <fstream>

namespace coppice {
namespace {

using namespace coppice::testing;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class ResumeTest : public ::testing::Test {
protected:
    static void SetUpTestSuite() {
        folder_ = new TemporaryFolder;
        write_model_and_data(folder_->path(), 512);
        std::ofstream(*folder_ / "recipe.yaml")
            << "model: {path: net.pt, input: [1, 3, 8, 8]}\nthreads: 1\nmeasure: {profile: 'off'}\n"
            << data_section(512)
            // No deploy: it chooses by measuring, and two forms may be equally fast.
            << "deploy: off\ngate: {max_drop: 60}\nstages:\n"
               "  - prune.channel: {criterion: magnitude, ratio: 0.4, round_to: 1}\n"
               "  - train.finetune: {epochs: 10, batch_size: 16, lr: 0.02, loss: distill.logits}\n"
               "  - lowrank.svd: {min_size: 1}\n";
        whole_ = new Outcome(run_program({"compress", "recipe.yaml", "--out", "whole"}, folder_->path()));
    }
    static void TearDownTestSuite() {
        delete whole_;
        delete folder_;
    }

    static std::vector<std::string> command(const std::string& out, bool resume = false) {
        std::vector<std::string> arguments = {"compress", "recipe.yaml", "--out", out};
        if (resume) arguments.push_back("--resume");
        return arguments;
    }

    // Starts a run, stops it by `signal` once `ready` holds, resumes it, and compares with the run without a break.
    void stop_and_resume(const std::string& out, int signal, int expected_code,
                         const std::function<bool(const fs::path&)>& ready) {
        ASSERT_EQ(whole_->code, 0) << whole_->err;
        const auto run = folder_->path() / out;
        {
            Program program(command(out), folder_->path());
            ASSERT_TRUE(program.wait_until([&] { return ready(run); })) << program.wait().err;
            program.signal(signal);
            const auto outcome = program.wait();
            ASSERT_EQ(outcome.code, expected_code) << outcome.err;
            stopped_ = outcome;
        }
        const auto resumed = run_program(command(out, true), folder_->path());
        ASSERT_EQ(resumed.code, 0) << resumed.err;
        for (const char* file :
             {"model.pt", "01-prune.channel/model.pt", "02-train.finetune/model.pt", "03-lowrank.svd/model.pt"})
            EXPECT_EQ(sha256_of_file((run / file).string()), sha256_of_file((*folder_ / "whole" / file).string()))
                << file;
        for (const auto& entry : fs::directory_iterator(run))
            EXPECT_NE(entry.path().extension(), ".partial") << entry.path();
        resumed_ = resumed;
    }

    static TemporaryFolder* folder_;
    static Outcome* whole_;
    Outcome stopped_, resumed_;
};

TemporaryFolder* ResumeTest::folder_ = nullptr;
Outcome* ResumeTest::whole_ = nullptr;

TEST_F(ResumeTest, KilledWhileTheBaselineIsMeasured) {
    stop_and_resume("baseline", SIGKILL, 137,
                    [](const fs::path& run) { return fs::exists(run / "00-baseline.partial"); });
}

TEST_F(ResumeTest, KilledAfterTheFirstStage) {
    stop_and_resume("first", SIGKILL, 137, [](const fs::path& run) { return fs::exists(run / "01-prune.channel"); });
    EXPECT_THAT(resumed_.err, HasSubstr("prune.channel: finished by an earlier run, taken from 01-prune.channel"));
}

TEST_F(ResumeTest, KilledInTrainingGoesOnAtTheCheckpoint) {
    stop_and_resume("training", SIGKILL, 137, [](const fs::path& run) {
        return fs::exists(run / "02-train.finetune.partial" / "work" / "checkpoint.pt");
    });
    EXPECT_TRUE(read_json(*folder_ / "training" / "02-train.finetune" / "stage.json")["facts"]["resumed"].get<bool>());
}

TEST_F(ResumeTest, KilledBetweenTrainingAndItsMeasurement) {
    stop_and_resume("measuring", SIGKILL, 137, [](const fs::path& run) {
        // On a machine that is too busy to look in time, the commit may be over; that moment is as good.
        return fs::exists(run / "02-train.finetune.partial" / "model.pt") || fs::exists(run / "02-train.finetune");
    });
}

TEST_F(ResumeTest, KilledTwice) {
    ASSERT_EQ(whole_->code, 0) << whole_->err;
    {
        Program program(command("twice"), folder_->path());
        ASSERT_TRUE(program.wait_until([&] { return fs::exists(*folder_ / "twice" / "01-prune.channel.partial"); }));
        program.signal(SIGKILL);
        program.wait();
    }
    {
        Program program(command("twice", true), folder_->path());
        ASSERT_TRUE(program.wait_until([&] { return fs::exists(*folder_ / "twice" / "02-train.finetune.partial"); }));
        program.signal(SIGKILL);
        program.wait();
    }
    const auto resumed = run_program(command("twice", true), folder_->path());
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_EQ(sha256_of_file((*folder_ / "twice" / "model.pt").string()),
              sha256_of_file((*folder_ / "whole" / "model.pt").string()));
}

TEST_F(ResumeTest, CtrlCEndsCleanlyAndSaysHowToGoOn) {
    stop_and_resume("interrupted", SIGINT, 130, [](const fs::path& run) {
        return fs::exists(run / "02-train.finetune.partial" / "work" / "checkpoint.pt");
    });
    EXPECT_THAT(stopped_.err, HasSubstr("Continue with: coppice compress recipe.yaml --out interrupted --resume"));
}

TEST_F(ResumeTest, ASecondProcessOnTheSameRunIsRefused) {
    ASSERT_EQ(whole_->code, 0) << whole_->err;
    Program program(command("locked"), folder_->path());
    ASSERT_TRUE(program.wait_until([&] { return fs::exists(*folder_ / "locked" / "01-prune.channel"); }));
    const auto second = run_program(command("locked", true), folder_->path());
    EXPECT_EQ(second.code, 1);
    EXPECT_THAT(second.err, HasSubstr("is working on this run"));
    program.signal(SIGKILL);
}

}  // namespace
}  // namespace coppice
