"""What stand-ins for llama-server print for `--help`: the flags by which its arguments are chosen."""

HELP = """\
-m,    --model FNAME                    model path to load
-a,    --alias STRING                   set alias
--host HOST                             address
--port PORT                             port
-c,    --ctx-size N                     context
-np,   --parallel N                     slots
-b,    --batch-size N                   batch
-ub,   --ubatch-size N                  micro-batch
-t,    --threads N                      threads
--threads-http N                        threads for HTTP
-ctk,  --cache-type-k TYPE              K
-ctv,  --cache-type-v TYPE              V
-fa,   --flash-attn [on|off|auto]       flash attention
-ngl,  --gpu-layers, --n-gpu-layers N   layers on GPUs
-sm,   --split-mode {none,layer,row}    split mode
-ts,   --tensor-split N0,N1,N2,...      split
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        one KV stream
"""
