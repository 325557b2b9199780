//! Published settings, and what is refused by name.

use super::*;

fn parse(fields: &str) -> Result<UNet2DConditionConfig> {
    let comma = if fields.is_empty() { "" } else { "," };
    UNet2DConditionConfig::from_config(&Config::parse(&format!("{{\"_class_name\":\"UNet2DConditionModel\"{comma}{fields}}}"), "c").unwrap())
}

fn depths_of(block: &BlockConfig) -> Vec<usize> {
    match &block.mixer {
        MixerConfig::Transformer(_, depths) => depths.clone(),
        _ => vec![],
    }
}

fn heads_of(block: &BlockConfig) -> usize {
    match &block.mixer {
        MixerConfig::Transformer(transformer, _) => transformer.heads,
        _ => 0,
    }
}

#[test]
fn defaults_are_diffusers_own() {
    let c = parse("").unwrap();
    assert_eq!((c.block_out_channels.as_slice(), c.time_embedding_dim, c.size_multiple()), (&[320, 640, 1280, 1280][..], 1280, 8));
    assert_eq!((c.token_width(), c.class_embedding, c.mid_block), (Some(1280), ClassEmbedding::None, Some(MidBlockType::CrossAttention)));
    let heads: Vec<usize> = (0..4).map(|i| heads_of(&c.down_block(i))).collect();
    assert_eq!(heads, [8, 8, 8, 0]);
    assert_eq!((c.down_block(0).layers, c.up_block(0).layers, depths_of(&c.up_block(1))), (2, 3, vec![1, 1, 1]));
}

#[test]
fn lists_are_per_block_and_reversed_on_the_way_up() {
    let sdxl = r#""down_block_types":["DownBlock2D","CrossAttnDownBlock2D","CrossAttnDownBlock2D"],
        "up_block_types":["CrossAttnUpBlock2D","CrossAttnUpBlock2D","UpBlock2D"],"block_out_channels":[320,640,1280],
        "attention_head_dim":[5,10,20],"transformer_layers_per_block":[1,2,10],"cross_attention_dim":2048,"use_linear_projection":true,
        "upcast_attention":null,"mid_block_only_cross_attention":null,"num_attention_heads":null,"addition_embed_type":"text_time",
        "addition_time_embed_dim":256,"projection_class_embeddings_input_dim":2816,"layers_per_block":[2,1,2]"#;
    let c = parse(sdxl).unwrap();
    assert_eq!((heads_of(&c.up_block(0)), heads_of(&c.up_block(1)), heads_of(&c.up_block(2))), (20, 10, 0));
    assert_eq!((depths_of(&c.up_block(0)), depths_of(&c.up_block(1))), (vec![10; 3], vec![2; 2]));
    let middle = c.middle_block(MidBlockType::CrossAttention);
    assert_eq!((heads_of(&middle), depths_of(&middle)), (20, vec![10; 2]));
    assert_eq!(c.text_time_widths(), Some([1280, 6]));
    let refiner = sdxl.replace("2816", "2560").replace("2048", "1280");
    assert_eq!(parse(&refiner).unwrap().text_time_widths(), Some([1280, 5]));
    let lists = sdxl.replace("[1,2,10]", "[0,[2],[4,4]],\"reverse_transformer_layers_per_block\":[[4,4,10],[2,1],0]");
    let c = parse(&lists).unwrap();
    assert_eq!((depths_of(&c.down_block(1)), depths_of(&c.up_block(0)), depths_of(&c.up_block(1))), (vec![2], vec![4, 4, 10], vec![2, 1]));
}

#[test]
fn what_is_not_supported_is_named() {
    let rows = [
        (r#""act_fn":"geglu""#, r#"c: act_fn: "geglu", expected one of "silu""#),
        (
            r#""down_block_types":["SimpleCrossAttnDownBlock2D"]"#,
            r#"c: down_block_types: "SimpleCrossAttnDownBlock2D", expected one of "CrossAttnDownBlock2D""#,
        ),
        (r#""up_block_types":["KUpBlock2D"]"#, r#"c: up_block_types: "KUpBlock2D", expected one of"#),
        (r#""mid_block_type":"UNetMidBlock2DSimpleCrossAttn""#, r#"c: mid_block_type: "UNetMidBlock2DSimpleCrossAttn", expected one of"#),
        (r#""block_out_channels":[8,8]"#, "c: down_block_types: 4 blocks, expected 2"),
        (r#""class_embed_type":"text""#, r#"c: class_embed_type: "text", expected one of "timestep", "identity", "projection", "simple_projection""#),
        (r#""class_embed_type":"projection""#, "c: projection_class_embeddings_input_dim: null, expected the width"),
        (r#""addition_embed_type":"image""#, r#"c: addition_embed_type: "image", expected "text_time""#),
        (r#""addition_embed_type":"text_time""#, "c: addition_time_embed_dim: null"),
        (
            r#""addition_embed_type":"text_time","addition_time_embed_dim":8,"projection_class_embeddings_input_dim":8"#,
            "c: projection_class_embeddings_input_dim: 8, expected more than",
        ),
        (r#""encoder_hid_dim_type":"text_image_proj""#, r#"c: encoder_hid_dim_type: "text_image_proj", expected "text_proj""#),
        (r#""encoder_hid_dim_type":"text_proj""#, "c: encoder_hid_dim: null, expected"),
        (r#""attention_type":"gated""#, r#"c: attention_type: "gated", expected "default""#),
        (r#""dual_cross_attention":true"#, "c: dual_cross_attention: true, expected false"),
        (r#""num_attention_heads":8"#, "c: num_attention_heads: 8, expected null"),
        (r#""cross_attention_norm":"layer_norm""#, r#"c: cross_attention_norm: "layer_norm", expected null"#),
        (r#""norm_num_groups":null"#, "c: norm_num_groups: null, expected"),
        (r#""attention_head_dim":[8,8]"#, "c: attention_head_dim: [8,8], expected an integer from 1 to 65536, or a list of 4 of them"),
        (r#""attention_head_dim":null"#, "c: attention_head_dim: null, expected"),
        (r#""attention_head_dim":400"#, "c: attention_head_dim: 400 heads in a block of 320 channels"),
        (r#""cross_attention_dim":[8,8,9,8]"#, "c: cross_attention_dim: differs between blocks"),
        (r#""only_cross_attention":1"#, "c: only_cross_attention: 1, expected true or false"),
        (r#""transformer_layers_per_block":[1,1,[1,1],1]"#, "c: reverse_transformer_layers_per_block: null, expected a list"),
        (
            r#""transformer_layers_per_block":[1,1,[1],1],"reverse_transformer_layers_per_block":1"#,
            "c: transformer_layers_per_block: [1] for a block of 2 layers",
        ),
        (r#""transformer_layers_per_block":64"#, "c: transformer_layers_per_block: 1280 transformer layers in all, expected at most 1024"),
        (r#""transformer_layers_per_block":65"#, "c: transformer_layers_per_block: 65, expected an integer from 0 to 64"),
        (r#""conv_in_kernel":4"#, "c: conv_in_kernel: 4, expected an odd number"),
        (r#""class_embeddings_concat":true"#, "c: class_embeddings_concat: true, expected false"),
        (r#""resnet_time_scale_shift":"spatial""#, r#"c: resnet_time_scale_shift: "spatial", expected one of"#),
        (r#""freq_shift":1,"block_out_channels":[2,8,8,8]"#, "c: freq_shift: 1 with 2 channels"),
        (r#""fir":true"#, "c: unknown or unsupported field `fir`"),
    ];
    for (fields, want) in rows {
        let error = parse(fields).unwrap_err().to_string();
        assert!(error.starts_with(want), "{fields}: {error}");
    }
}
