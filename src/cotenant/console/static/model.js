// The page of one model: its log as it is written, and a chat to try it.

import { startChat } from "./chat.js";
import { startLog } from "./log.js";

const chat = document.querySelector("[data-chat]");
if (chat) startChat(chat);
startLog(document.querySelector("[data-log]"));
