"""Checks the tables of modules. Run: python3 -m unittest crates/lock/data/modules_test.py"""

import collections
import pathlib
import re
import unittest

DATA = pathlib.Path(__file__).resolve().parent
NEVER_UNASKED = {"ambiguous", "assumed", "unrelated"}
FLAGS = NEVER_UNASKED | {
    "dated", "derived", "family", "generic", "preferred", "recorded", "wheel",
}
ANSWERS = """
Crypto pycryptodome|MySQLdb mysqlclient|OpenSSL pyopenssl|PIL pillow|agents openai-agents
agno agno|anthropic anthropic|attr attrs|autogen_agentchat autogen-agentchat|azure.identity azure-identity
bs4 beautifulsoup4|bson pymongo|chromadb chromadb|cohere cohere|composio composio
crewai crewai|crewai_tools crewai-tools|cv2 opencv-python-headless|dateutil python-dateutil
ddgs ddgs|discord discord-py|docx python-docx|dotenv python-dotenv|dspy dspy
duckduckgo_search duckduckgo-search|elevenlabs elevenlabs|embedchain embedchain|exa_py exa-py
faiss faiss-cpu|fitz pymupdf|git gitpython|github pygithub|google.cloud.storage google-cloud-storage
google.genai google-genai|google.generativeai google-generativeai|google.oauth2 google-auth
google.protobuf protobuf|groq groq|gtts gtts|guidance guidance|instructor instructor|jwt pyjwt
langchain langchain|langchain_openai langchain-openai|langgraph langgraph
langgraph.prebuilt langgraph-prebuilt|litellm litellm|llama_index.core llama-index-core
llama_index.llms.openai llama-index-llms-openai|magic python-magic|mem0 mem0ai|mistralai mistralai
mysql mysql-connector-python|mysql.connector mysql-connector-python|opentelemetry.sdk opentelemetry-sdk
phi phidata|pinecone pinecone|pptx python-pptx|psycopg2 psycopg2-binary|pyaudio pyaudio|pymongo pymongo
qdrant_client qdrant-client|replicate replicate|semantic_kernel semantic-kernel|serial pyserial
sklearn scikit-learn|slack_sdk slack-sdk|smolagents smolagents|sounddevice sounddevice
speech_recognition speechrecognition|st_paywall st-paywall|streamlit streamlit
streamlit_chat streamlit-chat|streamlit_extras streamlit-extras|tavily tavily-python
telegram python-telegram-bot|together together|vertexai google-cloud-aiplatform
weaviate weaviate-client|websocket websocket-client|whisper openai-whisper|yaml pyyaml
"""


def rows(name):
    lines = (DATA / name).read_text().splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def table():
    found = collections.defaultdict(list)
    for module, distribution, _, flags in rows("modules.tsv"):
        found[module].append((distribution, set(flags.split(","))))
    return found


def impostors():
    return {row[0] for row in rows("impostors.txt")}


def standard_modules():
    return {row[0].split()[0] for row in rows("stdlib.txt")}


class Modules(unittest.TestCase):
    def test_rows_are_sorted_and_unique(self):
        keys = [row[:2] for row in rows("modules.tsv")]
        self.assertEqual(keys, sorted(keys))
        self.assertEqual(len(keys), len({tuple(key) for key in keys}))

    def test_names_are_normalised(self):
        for module, distribution, rank, flags in rows("modules.tsv"):
            self.assertRegex(distribution, r"\A[a-z0-9]+(-[a-z0-9]+)*\Z")
            self.assertTrue(all(part.isidentifier() for part in module.split(".")), module)
            self.assertGreater(int(rank), 0)
            self.assertLessEqual(set(flags.split(",")), FLAGS)

    def test_the_standard_library_is_not_answered(self):
        standard = standard_modules()
        self.assertEqual([], [m for m in table() if m.split(".")[0] in standard])

    def test_an_impostor_is_no_answer(self):
        named = impostors()
        self.assertEqual([], [row for row in rows("modules.tsv") if row[1] in named])
        self.assertEqual([], [row for row in rows("optional.tsv") if row[2] in named])

    def test_several_candidates_are_marked(self):
        for module, found in table().items():
            marked = [("ambiguous" in flags) for _, flags in found]
            self.assertTrue(all(marked) if len(found) > 1 else not any(marked), module)

    def test_namespaces_have_no_answer_of_their_own(self):
        for module in ("google", "google.cloud", "azure", "llama_index.llms"):
            self.assertNotIn(module, table())

    def test_common_words_have_no_answer(self):
        for module in ("api", "app", "config", "core", "database", "tests", "tools", "utils"):
            self.assertNotIn(module, table())

    def test_known_imports_resolve(self):
        found = table()
        for pair in re.split(r"[|\n]", ANSWERS.strip()):
            module, distribution = pair.split()
            with self.subTest(module):
                self.assertEqual([distribution], [name for name, _ in found[module]])
                self.assertFalse(found[module][0][1] & NEVER_UNASKED)

    def test_what_depends_on_the_date_is_marked(self):
        found = table()
        self.assertEqual(["ag2", "pyautogen"], [name for name, _ in found["autogen"]])
        self.assertEqual(["farm-haystack", "haystack-ai"], [name for name, _ in found["haystack"]])
        for module in ("autogen", "composio", "haystack", "pinecone", "pkg_resources"):
            self.assertTrue(all("dated" in flags for _, flags in found[module]))


    def test_the_table_stays_small(self):
        self.assertLessEqual((DATA / "modules.tsv").stat().st_size, 900 * 1024)


class Impostors(unittest.TestCase):
    def test_rows_are_sorted_and_whole(self):
        names = [row[0] for row in rows("impostors.txt")]
        self.assertEqual(names, sorted(set(names)))
        for row in rows("impostors.txt"):
            self.assertEqual(5, len(row), row)
            self.assertIn(row[1], {"backport", "other", "placeholder", "squat"})


class Optional(unittest.TestCase):
    def test_rows_are_sorted_and_unique(self):
        keys = [tuple(row[:2]) for row in rows("optional.tsv")]
        self.assertEqual(keys, sorted(set(keys)))

    def test_cures_are_distributions_or_extras(self):
        for library, module, cure, versions, source in rows("optional.tsv"):
            self.assertRegex(cure, r"\A[a-z0-9-]+(\[[a-z0-9-]+\])?\Z")
            self.assertIn(source, {"hand", "metadata"})


if __name__ == "__main__":
    unittest.main()
