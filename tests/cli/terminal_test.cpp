#include "support/support.h"

#include "terminal.h"

namespace coppice::cli {
namespace {

double g_now = 0;

// A log that writes to memory, at times that the test sets.
class Recorded {
public:
    Recorded(TerminalLog::Level level, bool terminal, bool color = false, int width = 80)
        : stream_(::open_memstream(&text_, &size_)), log(level, stream_, terminal, color, width) {
        g_now = 100;
        log.clock = [] { return g_now; };
    }
    ~Recorded() {
        log.clear();
        std::fclose(stream_);
        std::free(text_);
    }
    std::string text() {
        std::fflush(stream_);
        return std::string(text_, size_);
    }

private:
    char* text_ = nullptr;
    size_t size_ = 0;
    std::FILE* stream_;

public:
    TerminalLog log;
};

TEST(TerminalLog, LevelsDecideWhatIsShown) {
    for (const auto& [level, lines] : std::vector<std::pair<TerminalLog::Level, std::string>>{
             {TerminalLog::Level::kQuiet, "warning: w\n"},
             {TerminalLog::Level::kNormal, "i\nwarning: w\n"},
             {TerminalLog::Level::kVerbose, "d\ni\nwarning: w\n"}}) {
        Recorded recorded(level, false);
        recorded.log.write("debug", "d");
        recorded.log.write("info", "i");
        recorded.log.write("warning", "w");
        EXPECT_EQ(recorded.text(), lines);
    }
}

TEST(TerminalLog, ElsewhereProgressIsALineAtEveryTenth) {
    Recorded recorded(TerminalLog::Level::kNormal, false);
    for (int i = 0; i <= 40; ++i, g_now += 1) recorded.log.progress("training", i, 40, "loss 0.5");
    const auto text = recorded.text();
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 10);
    EXPECT_THAT(text, ::testing::StartsWith("training: 10 %, loss 0.5, left: 36 s\n"));
    EXPECT_THAT(text, ::testing::EndsWith("training: 100 %, loss 0.5\n"));
    EXPECT_EQ(text.find('\r'), std::string::npos);
    EXPECT_EQ(text.find('\033'), std::string::npos);
}

TEST(TerminalLog, ShortTasksElsewhereSayNothing) {
    Recorded recorded(TerminalLog::Level::kNormal, false);
    for (int i = 0; i <= 10; ++i, g_now += 0.05) recorded.log.progress("evaluating", i, 10, "");
    EXPECT_EQ(recorded.text(), "");
}

TEST(TerminalLog, OnATerminalOneLineIsRedrawnAndLeavesNothing) {
    Recorded recorded(TerminalLog::Level::kNormal, true);
    recorded.log.progress("training", 0, 4, "");
    g_now += 2;
    recorded.log.progress("training", 1, 4, "loss 0.5");
    EXPECT_THAT(recorded.text(),
                ::testing::EndsWith("\r\033[Ktraining [######..................]  25 %  6.0 s left  loss 0.5"));
    recorded.log.write("info", "epoch 1");
    EXPECT_THAT(recorded.text(), ::testing::EndsWith("\r\033[Kepoch 1\n"));
    recorded.log.progress("training", 4, 4, "");
    EXPECT_THAT(recorded.text(), ::testing::EndsWith("\r\033[Kepoch 1\n"));
}

TEST(TerminalLog, TheLineFitsANarrowTerminal) {
    Recorded recorded(TerminalLog::Level::kNormal, true, false, 40);
    recorded.log.progress("a task with a long name", 1, 4, std::string(100, 'x'));
    const auto text = recorded.text();
    EXPECT_LE(text.size() - std::string("\r\033[K").size(), 39u);
}

TEST(TerminalLog, ATaskOfUnknownLengthHasALineWithoutABar) {
    Recorded recorded(TerminalLog::Level::kNormal, true);
    recorded.log.progress("make", 2, 0, "12 J");
    EXPECT_EQ(recorded.text(), "\r\033[Kmake  12 J");
    recorded.log.progress("make", 2.01, 0, "13 J");  // too soon to be seen
    EXPECT_EQ(recorded.text(), "\r\033[Kmake  12 J");
    g_now += 1;
    recorded.log.progress("make", 3, 0, "14 J");
    EXPECT_THAT(recorded.text(), ::testing::EndsWith("\r\033[Kmake  14 J"));
    Recorded elsewhere(TerminalLog::Level::kNormal, false);
    elsewhere.log.progress("make", 2, 0, "12 J");
    EXPECT_EQ(elsewhere.text(), "");
}

TEST(TerminalLog, AResumedTaskDoesNotCountWhatWasDoneBefore) {
    Recorded recorded(TerminalLog::Level::kNormal, false);
    recorded.log.progress("training", 80, 100, "");
    g_now += 10;
    recorded.log.progress("training", 90, 100, "");  // 10 in 10 s: 10 more need 10 s
    EXPECT_EQ(recorded.text(), "training: 90 %, left: 10 s\n");
}

TEST(TerminalLog, ColoursOnlyWhenAllowed) {
    Recorded plain(TerminalLog::Level::kNormal, true, false);
    plain.log.write("warning", "w");
    EXPECT_EQ(plain.text(), "warning: w\n");
    Recorded coloured(TerminalLog::Level::kNormal, true, true);
    coloured.log.write("warning", "w");
    EXPECT_EQ(coloured.text(), "\033[33mwarning:\033[0m w\n");
}

TEST(Text, NumbersHaveThreeDigitsAndUnits) {
    EXPECT_EQ(count_text(812), "812");
    EXPECT_EQ(count_text(269722), "270 k");
    EXPECT_EQ(count_text(40551424), "40.6 M");
    EXPECT_EQ(count_text(1.81e9), "1.81 G");
    EXPECT_EQ(count_text(999999), "1.00 M");
    EXPECT_EQ(bytes_text(1100000), "1.10 MB");
    EXPECT_EQ(bytes_text(512), "512 B");
    EXPECT_EQ(duration_text(0.0123), "12 ms");
    EXPECT_EQ(duration_text(4.25), "4.2 s");
    EXPECT_EQ(duration_text(200), "3 min 20 s");
    EXPECT_EQ(duration_text(7500), "2 h 5 min");
    EXPECT_EQ(shape_text({1, 3, 32, 32}), "1 x 3 x 32 x 32");
}

TEST(Text, TablesAlignColumns) {
    const Table table{{"layer", "MACs"}, {false, true}, {{"conv1", "1.00 M"}, {"a", "12"}}};
    EXPECT_EQ(table.text(), "layer    MACs\n-------------\nconv1  1.00 M\na          12\n");
}

TEST(Text, WrapsAtWords) {
    EXPECT_EQ(wrapped("one two three four", 9, 2), "one two\n  three\n  four");
}

}  // namespace
}  // namespace coppice::cli
