#include "support/support.h"

#include <fstream>

namespace coppice {
namespace {

using testing::TemporaryFolder;

const Json kManifest = {{"format", "coppice-run"},
                        {"coppice", "0.1.0"},
                        {"libtorch", "2.15.0"},
                        {"seed", 0},
                        {"model", {{"path", "a.pt"}, {"sha256", "aa"}}},
                        {"data", {{"test", {{"description", "d"}, {"sha256", "bb"}}}}},
                        {"recipe", {{"base", "/x"}, {"stages", {{{"prune.channel", {{"ratio", 0.3}}}}}}}}};

void put(const std::filesystem::path& path, const std::string& text) {
    std::ofstream(path) << text;
}

TEST(RunDirectory, NumbersFoldersAndKeepsNamesSafe) {
    EXPECT_EQ(RunDirectory::folder_name(0, "baseline"), "00-baseline");
    EXPECT_EQ(RunDirectory::folder_name(12, "prune.channel"), "12-prune.channel");
    EXPECT_EQ(RunDirectory::folder_name(1, "../a b"), "01-.._a_b");
}

TEST(RunDirectory, TwoProcessesOnOneFolderAreRefused) {
    TemporaryFolder folder;
    const auto path = folder / "run";
    {
        auto first = RunDirectory::open(path, kManifest, false);
        // A second descriptor has a lock of its own, in the same process too.
        EXPECT_ERROR(RunDirectory::open(path, kManifest, true), IoError,
                     "another process (process " + std::to_string(::getpid()) + ") is working on this run");
    }
    EXPECT_TRUE(RunDirectory::open(path, kManifest, true).resumed());
}

TEST(RunDirectory, ARunIsNotOverwritten) {
    TemporaryFolder folder;
    const auto path = folder / "run";
    RunDirectory::open(path, kManifest, false);
    EXPECT_ERROR(RunDirectory::open(path, kManifest, false), IoError,
                 "the folder already holds a run. Continue it with --resume, or choose a new one: --out " +
                     path.string() + "-2");
}

TEST(RunDirectory, AFolderWithOtherFilesIsRefused) {
    TemporaryFolder folder;
    put(folder / "thesis.tex", "x");
    EXPECT_ERROR(RunDirectory::open(folder.path(), kManifest, false), IoError,
                 "holds other files (thesis.tex) and no run");
    EXPECT_FALSE(std::filesystem::exists(folder / "lock"));
}

TEST(RunDirectory, AFolderKilledBeforeItsManifestIsNew) {
    TemporaryFolder folder;
    put(folder / "lock", "1\n");
    put(folder / ".manifest.json.tmp-77", "{\"half");
    const auto run = RunDirectory::open(folder.path(), kManifest, true);
    EXPECT_FALSE(run.resumed());
    EXPECT_FALSE(std::filesystem::exists(folder / ".manifest.json.tmp-77"));
}

TEST(RunDirectory, ResumingWithSomethingElseNamesWhatChanged) {
    TemporaryFolder folder;
    const auto path = folder / "run";
    RunDirectory::open(path, kManifest, false);
    Json other = kManifest;
    other["model"]["sha256"] = "cc";
    EXPECT_ERROR(RunDirectory::open(path, other, true), IoError, "the model file has other bytes");
    other = kManifest;
    other["recipe"]["stages"][0]["prune.channel"]["ratio"] = 0.5;
    EXPECT_ERROR(RunDirectory::open(path, other, true), IoError, "stages[0].prune.channel.ratio was 0.3, is 0.5");
    other = kManifest;
    other["data"]["test"]["sha256"] = "dd";
    EXPECT_ERROR(RunDirectory::open(path, other, true), IoError, "the test data are others");
    other = kManifest;
    other["libtorch"] = "2.16.0";
    EXPECT_ERROR(RunDirectory::open(path, other, true), IoError, "LibTorch's version was \"2.15.0\", is \"2.16.0\"");
}

TEST(RunDirectory, MovingFilesOrChangingTheReportDoesNotHinderAResume) {
    Json other = kManifest;
    other["model"]["path"] = "/elsewhere/a.pt";
    other["recipe"]["base"] = "/elsewhere";
    other["recipe"]["report"] = {{"formats", {"json"}}};
    other["created"] = "later";
    EXPECT_THAT(manifest_differences(kManifest, other), ::testing::IsEmpty());
}

TEST(RunDirectory, AFolderIsFinishedOnlyWhenItsFilesCanBeRead) {
    TemporaryFolder folder;
    auto run = RunDirectory::open(folder / "run", kManifest, false);
    const auto partial = run.partial("01-a");
    put(partial / "model.pt", "bytes");
    put(partial / "stage.json", "{}");
    put(partial / "measurement.json", "{}");
    EXPECT_FALSE(run.finished("01-a"));
    run.commit("01-a");
    EXPECT_TRUE(run.finished("01-a"));
    EXPECT_FALSE(std::filesystem::exists(partial));
    put(folder / "run" / "01-a" / "measurement.json", "{\"quality\": {\"val");
    EXPECT_FALSE(run.finished("01-a"));
    EXPECT_EQ(run.set_aside("01-a").filename(), "01-a.aside-1");
    EXPECT_TRUE(std::filesystem::exists(folder / "run" / "01-a.aside-1" / "model.pt"));
}

TEST(RunDirectory, ALineThatAKillCutOffDoesNotSwallowTheNext) {
    TemporaryFolder folder;
    const auto path = folder / "run";
    RunDirectory::open(path, kManifest, false).event({{"event", "start"}});
    std::ofstream(path / "log.jsonl", std::ios::app) << "{\"time\": \"20";
    RunDirectory::open(path, kManifest, true).event({{"event", "resume"}});
    std::istringstream log(read_text(path / "log.jsonl"));
    std::vector<std::string> lines;
    for (std::string line; std::getline(log, line);) lines.push_back(line);
    ASSERT_EQ(lines.size(), 3u);
    EXPECT_EQ(Json::parse(lines[0])["event"], "start");
    EXPECT_EQ(Json::parse(lines[2])["event"], "resume");
}

TEST(WriteAtomically, ReplacesTheFileAndLeavesNothingElse) {
    TemporaryFolder folder;
    write_atomically(folder / "a.json", "one");
    write_atomically(folder / "a.json", "two");
    EXPECT_EQ(read_text(folder / "a.json"), "two");
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(WriteAtomically, AFolderThatIsNotThereIsAnIoError) {
    TemporaryFolder folder;
    EXPECT_ERROR(write_atomically(folder / "no" / "a.json", "x"), IoError, "No such file or directory");
}

TEST(ReadJson, NamesLineAndColumnOfAnError) {
    TemporaryFolder folder;
    put(folder / "a.json", "{\n  \"a\": 1,\n  \"b\": oops\n}\n");
    EXPECT_ERROR(read_json(folder / "a.json"), IoError, "a.json line 3, column 8: is not valid JSON");
    put(folder / "b.json", "");
    EXPECT_ERROR(read_json(folder / "b.json"), IoError, "the file is empty");
}

}  // namespace
}  // namespace coppice
