// grpc-go, with the stubs that protoc-gen-go and protoc-gen-go-grpc make from the .proto files as they are.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/proto"
	"triptych/v1"
)

// Debian's grpc-go is older than the stubs of protoc-gen-go and cannot read them; newer ones need no codec.
type codec struct{}

func (codec) Name() string                              { return "proto" }
func (codec) Marshal(value interface{}) ([]byte, error) { return proto.Marshal(value.(proto.Message)) }
func (codec) Unmarshal(data []byte, to interface{}) error {
	return proto.Unmarshal(data, to.(proto.Message))
}

func init() { encoding.RegisterCodec(codec{}) }

func main() {
	connection, err := grpc.Dial(os.Args[2], grpc.WithInsecure(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)))
	if err != nil {
		log.Fatal(err)
	}
	one := int32(1)
	spec := &triptychv1.RunSpec{
		Prompt:   "a red house",
		Generate: &triptychv1.GenerateStage{Count: &one},
		Refine:   &triptychv1.RefineStage{Count: &one},
		Upscale:  &triptychv1.UpscaleStage{},
	}
	client := triptychv1.NewPipelineServiceClient(connection)
	stream, err := client.StreamRun(context.Background(), &triptychv1.StreamRunRequest{Spec: spec})
	if err != nil {
		log.Fatal(err)
	}
	var last *triptychv1.Image
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		if ready := response.GetEvent().GetImageReady(); ready != nil {
			last = ready.GetImage()
		}
	}
	if last.GetWidth() != 1024 || len(last.GetData()) == 0 {
		log.Fatal("no picture of 1024 px")
	}
	fmt.Println("made")
}
