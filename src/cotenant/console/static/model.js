// Script of a model's page: its log and a chat.

import { startChat } from "./chat.js";
import { startLog } from "./log.js";

const chat = document.querySelector("[data-chat]");
if (chat) startChat(chat);
startLog(document.querySelector("[data-log]"));
